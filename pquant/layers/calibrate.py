"""Integer bits that are chosen from the values seen."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pquant.layers.example import Example, arguments, same_random_numbers
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantizer import FixedPointQuantizer


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Example]) -> None:
    """Choose the integer bits of every quantizer with ``i: auto`` from what it sees in these batches, together with all it saw before."""
    _observe(model, auto_quantizers(model), batches)


@torch.no_grad()
def trace_ranges(model: nn.Module, batches: Iterable[Example]) -> None:
    """Widen the integer bits that were tracked in training (HGQ under WRAP) until no value in these batches wraps; before deployment."""
    _observe(model, [module for module in model.modules() if isinstance(module, HGQQuantizer) and module.tracks], batches)


def _observe(model: nn.Module, quantizers: list[FixedPointQuantizer | HGQQuantizer], batches: Iterable[Example]) -> None:
    if quantizers:
        with _observing(model, quantizers):
            for args, kwargs in map(arguments, batches):
                model(*args, **kwargs)


@contextmanager
def _observing(model: nn.Module, quantizers: list[FixedPointQuantizer | HGQQuantizer]) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    for quantizer in quantizers:
        quantizer.observing = True
    model.eval()
    try:
        with same_random_numbers(model):
            yield
    finally:
        for quantizer in quantizers:
            quantizer.observing = False
        for module, mode in modes.items():
            module.training = mode


def auto_quantizers(model: nn.Module) -> list[FixedPointQuantizer | HGQQuantizer]:
    """Return the quantizers whose integer bits are chosen from the values seen."""
    return [module for module in model.modules() if isinstance(module, (FixedPointQuantizer, HGQQuantizer)) and module.auto]

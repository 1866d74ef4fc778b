"""Calibration: integer bits chosen from the range of the values in some batches."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pquant.layers.example import Example, arguments, same_random_numbers
from pquant.layers.modes import evaluating
from pquant.quantization.quantizer import Quantizer


@torch.no_grad()
def calibrate(model: nn.Module, batches: Iterable[Example]) -> None:
    """Choose the integer bits of every quantizer with ``i: auto`` from its values in these batches and in all batches observed before."""
    _observe(model, auto_quantizers(model), batches)


@torch.no_grad()
def trace_ranges(model: nn.Module, batches: Iterable[Example]) -> None:
    """Set the integer bits that follow the data in training so that they hold all values in these batches. Call it before ``finalize``.

    Under HGQ with WRAP, integer bits only increase. With ``dynamic_data_quantization`` they are chosen from these batches alone.
    """
    tracking = [module for module in model.modules() if isinstance(module, Quantizer) and module.tracks]
    for quantizer in tracking:
        quantizer.start_tracing()
    _observe(model, tracking, batches)


def _observe(model: nn.Module, quantizers: list[Quantizer], batches: Iterable[Example]) -> None:
    if quantizers:
        with _observing(model, quantizers):
            for args, kwargs in map(arguments, batches):
                model(*args, **kwargs)


@contextmanager
def _observing(model: nn.Module, quantizers: list[Quantizer]) -> Iterator[None]:
    for quantizer in quantizers:
        quantizer.observing = True
    try:
        with evaluating(model), same_random_numbers(model):
            yield
    finally:
        for quantizer in quantizers:
            quantizer.observing = False


def auto_quantizers(model: nn.Module) -> list[Quantizer]:
    """Return the quantizers whose integer bits calibration chooses."""
    return [module for module in model.modules() if isinstance(module, Quantizer) and module.auto]

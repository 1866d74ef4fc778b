"""Deferred quantization: a compressed model computes with float values until the search has chosen the bits."""

from torch import nn

from pquant.layers.base import QuantizedLayer
from pquant.quantization.quantizer import NoQuantizer, Quantizer


class DeferredQuantizer(NoQuantizer):
    """Replaces a quantizer, which it holds, and returns values unchanged."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer


def defer(model: nn.Module) -> None:
    """Switch off every quantizer of a compressed model until :func:`release`."""
    deferred: dict[int, Quantizer] = {}
    for module in _layers(model):
        for place, quantizer in list(module.named_children()):
            if isinstance(quantizer, Quantizer) and not quantizer.is_float:
                setattr(module, place, deferred.setdefault(id(quantizer), DeferredQuantizer(quantizer)))
    for module in _layers(model):
        module.sources = {place: deferred.get(id(source), source) for place, source in module.sources.items()}


def release(model: nn.Module) -> None:
    """Restore the deferred quantizers of a compressed model."""
    for module in _layers(model):
        for place, quantizer in list(module.named_children()):
            if isinstance(quantizer, DeferredQuantizer):
                setattr(module, place, quantizer.quantizer)
        module.sources = {place: released(source) for place, source in module.sources.items()}


def released(quantizer: Quantizer) -> Quantizer:
    """Return the quantizer that a deferred ``quantizer`` replaces, or ``quantizer`` itself if it is not deferred."""
    return quantizer.quantizer if isinstance(quantizer, DeferredQuantizer) else quantizer


def _layers(model: nn.Module) -> list[QuantizedLayer]:
    return [module for module in model.modules() if isinstance(module, QuantizedLayer)]

"""Quantizers that wait: until the search has chosen the bits, a compressed model computes with float values."""

from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.activation import PQActivation
from pquant.layers.base import QuantizedLayer
from pquant.quantization.quantizer import NoQuantizer, Quantizer

PLACES = ("input_quantizer", "output_quantizer", "weight_quantizer", "bias_quantizer")


class Waiting(NoQuantizer):
    """Holds the quantizer whose place it takes, and lets values pass."""

    def __init__(self, quantizer: Quantizer) -> None:
        super().__init__()
        self.quantizer = quantizer


class WaitingRectifier(Waiting):
    """Stands for a quantizer that is a ReLU as well, see :class:`pquant.layers.PQActivation`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return max(x, 0)."""
        return F.relu(x)


def wait(model: nn.Module) -> None:
    """Switch off every quantizer of a compressed model until :func:`release`."""
    waiting: dict[int, Quantizer] = {}
    for module in _layers(model):
        for place in PLACES:
            quantizer = getattr(module, place, None)
            if quantizer is None or quantizer.is_float:
                continue
            rectifies = isinstance(module, PQActivation) and module.rectifies and place == "input_quantizer"
            kind = WaitingRectifier if rectifies else Waiting
            setattr(module, place, waiting.setdefault(id(quantizer), kind(quantizer)))
    for module in _layers(model):
        module.source = tuple(waiting.get(id(source), source) for source in module.source)


def release(model: nn.Module) -> None:
    """Put the quantizers that wait back to work."""
    for module in _layers(model):
        for place in PLACES:
            if hasattr(module, place):
                setattr(module, place, released(getattr(module, place)))
        module.source = tuple(released(source) for source in module.source)


def released(quantizer: Quantizer) -> Quantizer:
    """Return the quantizer that waits in ``quantizer``'s place, or itself."""
    return quantizer.quantizer if isinstance(quantizer, Waiting) else quantizer


def _layers(model: nn.Module) -> list[QuantizedLayer]:
    return [module for module in model.modules() if isinstance(module, QuantizedLayer)]

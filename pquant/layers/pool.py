"""Average and max pools."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from pquant.layers.base import Calls, QuantizedLayer, Shape
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import NoQuantizer, Quantizer


class _AvgPool(QuantizedLayer):
    """An average pool, maybe in place of an adaptive one, whose windows were made for inputs of certain ``sizes``.

    It does as the adaptive one itself does, to the last bit, where nothing is quantized, and for inputs of other sizes.
    """

    adaptive: Any
    kernel_size: Any
    sizes: Collection[Shape] = ()

    def compute(self, x: Tensor) -> Tensor:
        """Return the pooled ``x``."""
        if self.sizes and (self._stays_float() or tuple(x.shape[-len(self.kernel_size) :]) not in self.sizes):
            return self.adaptive.forward(self, x)
        return super(QuantizedLayer, self).forward(x)

    def _stays_float(self) -> bool:
        return self.input_quantizer.is_float and self.output_quantizer.is_float and not self.sources


class PQAvgPool1d(_AvgPool, nn.AvgPool1d):
    """``nn.AvgPool1d`` with quantizers around it."""

    adaptive = nn.AdaptiveAvgPool1d


class PQAvgPool2d(_AvgPool, nn.AvgPool2d):
    """``nn.AvgPool2d`` with quantizers around it."""

    adaptive = nn.AdaptiveAvgPool2d


class PQAvgPool3d(_AvgPool, nn.AvgPool3d):
    """``nn.AvgPool3d`` with quantizers around it."""

    adaptive = nn.AdaptiveAvgPool3d


POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.AdaptiveAvgPool1d: nn.AvgPool1d,
    nn.AdaptiveAvgPool2d: nn.AvgPool2d,
    nn.AdaptiveAvgPool3d: nn.AvgPool3d,
}


def fixed_pool(layer: nn.Module, calls: Calls) -> nn.Module | None:
    """Return the plain average pool that an adaptive one is in all its calls, or None where its windows differ in size.

    The pool keeps the ``output_size`` of the adaptive one, and the ``sizes`` of the inputs, which are the last axes of the shapes in ``calls``.
    """
    rank = list(POOLS).index(type(layer)) + 1
    windows = [list(zip(call.input[-rank:], call.output[-rank:], strict=True)) for call in calls]
    kernels: Any = {tuple(before // after for before, after in window) for window in windows}
    if len(kernels) > 1 or any(before % after for window in windows for before, after in window):
        return None
    pool: Any = POOLS[type(layer)](kernels.pop()).train(layer.training)
    pool.output_size, pool.sizes = layer.output_size, {call.input[-rank:] for call in calls}
    return pool


class _MaxPool(QuantizedLayer):
    """A max pool of quantized values: what it gives are some of these, so that it has no output quantizer."""

    tensors = ("input",)

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        self.output_quantizer = NoQuantizer()

    def compute(self, x: Tensor) -> Tensor:
        """Return the largest value of each window."""
        return super(QuantizedLayer, self).forward(x)

    def output_source(self) -> Quantizer | None:
        """Return the quantizer of the input."""
        return None if self.operand().is_float else self.operand()


class PQMaxPool1d(_MaxPool, nn.MaxPool1d):
    """``nn.MaxPool1d`` with a quantizer of its input."""


class PQMaxPool2d(_MaxPool, nn.MaxPool2d):
    """``nn.MaxPool2d`` with a quantizer of its input."""


class PQMaxPool3d(_MaxPool, nn.MaxPool3d):
    """``nn.MaxPool3d`` with a quantizer of its input."""

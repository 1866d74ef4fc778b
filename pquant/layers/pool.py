"""Average and max pools."""

from collections.abc import Collection
from typing import Any

from torch import Tensor, nn

from pquant.layers.base import Calls, QuantizedLayer, Shape
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import NoQuantizer, Quantizer


class _AvgPool(QuantizedLayer):
    """An average pool. If it replaces an adaptive pool, its windows fit inputs with the spatial ``sizes`` of the example input.

    Where nothing is quantized, and for inputs of other sizes, it calls the adaptive pool, so that the result is the same to the last bit.
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
    """Return the average pool that equals an adaptive pool in all its calls, or None where the windows of the adaptive pool differ in size.

    The average pool stores the ``output_size`` of the adaptive one, and the spatial ``sizes`` of its inputs in ``calls``.
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
    """A max pool of quantized values. Its outputs are some of its inputs, so that it needs no output quantizer."""

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
    """``nn.MaxPool1d`` with a quantized input."""


class PQMaxPool2d(_MaxPool, nn.MaxPool2d):
    """``nn.MaxPool2d`` with a quantized input."""


class PQMaxPool3d(_MaxPool, nn.MaxPool3d):
    """``nn.MaxPool3d`` with a quantized input."""

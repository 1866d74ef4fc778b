"""Average pooling."""

from typing import Any

from torch import Tensor, nn

from pquant.layers.base import Calls, QuantizedLayer


class PQAvgPool1d(QuantizedLayer, nn.AvgPool1d):
    """``nn.AvgPool1d`` with quantizers around it."""

    def compute(self, x: Tensor) -> Tensor:
        """Return the pooled ``x``."""
        return nn.AvgPool1d.forward(self, x)


class PQAvgPool2d(QuantizedLayer, nn.AvgPool2d):
    """``nn.AvgPool2d`` with quantizers around it."""

    def compute(self, x: Tensor) -> Tensor:
        """Return the pooled ``x``."""
        return nn.AvgPool2d.forward(self, x)


class PQAvgPool3d(QuantizedLayer, nn.AvgPool3d):
    """``nn.AvgPool3d`` with quantizers around it."""

    def compute(self, x: Tensor) -> Tensor:
        """Return the pooled ``x``."""
        return nn.AvgPool3d.forward(self, x)


POOLS: dict[type[nn.Module], type[nn.Module]] = {
    nn.AdaptiveAvgPool1d: nn.AvgPool1d,
    nn.AdaptiveAvgPool2d: nn.AvgPool2d,
    nn.AdaptiveAvgPool3d: nn.AvgPool3d,
}


def fixed_pool(layer: nn.Module, calls: Calls) -> nn.Module | None:
    """Return the plain average pool that an adaptive one is in all its calls, or None where its windows differ in size.

    Shapes in ``calls`` are (batch, channels, *positions).
    """
    windows = [list(zip(call.input[2:], call.output[2:], strict=True)) for call in calls]
    kernels: Any = {tuple(before // after for before, after in window) for window in windows}
    if len(kernels) > 1 or any(before % after for window in windows for before, after in window):
        return None
    return POOLS[type(layer)](kernels.pop()).train(layer.training)

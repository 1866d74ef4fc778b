"""Average pooling."""

from typing import Any

from torch import Tensor, nn

from pquant.layers.compressed import QuantizedLayer


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


def fixed_pool(layer: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> nn.Module | None:
    """Return the plain average pool that an adaptive one is for this input, or None where its windows differ in size.

    The shapes are (channels, *positions), without the batch axis.
    """
    positions = list(zip(input_shape[1:], output_shape[1:], strict=True))
    if any(before % after for before, after in positions):
        return None
    kernel: Any = tuple(before // after for before, after in positions)
    return POOLS[type(layer)](kernel)

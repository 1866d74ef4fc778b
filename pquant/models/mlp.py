"""Multi-layer perceptrons."""

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pquant.errors import ConfigError, unknown

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class MLP(nn.Module):
    """Dense layers with an activation between them; inputs (batch, ...) of more than one axis are flattened.

    Args:
        sizes: widths from input to output, such as [16, 64, 32, 32, 5]; null at either end stands for the data's features or outputs.
        input_shape: shape of one input.
        num_outputs: the number of outputs that the data needs.
        activation: "relu" or "tanh".
        batch_norm: put a batch norm before each activation.

    Raises:
        ConfigError: the sizes do not fit the data, or the activation is unknown.
    """

    def __init__(
        self,
        sizes: Sequence[int | None],
        input_shape: Sequence[int],
        num_outputs: int,
        activation: Literal["relu", "tanh"] = "relu",
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"MLP.activation: {unknown('activation', activation, ACTIVATIONS)}")
        widths = _widths(sizes, math.prod(input_shape), num_outputs)
        layers: list[nn.Module] = [nn.Linear(widths[0], widths[1])]
        for before, after in zip(widths[1:], widths[2:], strict=False):
            layers += [nn.BatchNorm1d(before)] * batch_norm + [ACTIVATIONS[activation](), nn.Linear(before, after)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (batch, num_outputs)."""
        return self.layers(x.flatten(1) if x.ndim > 2 else x)


def _widths(sizes: Sequence[int | None], inputs: int, outputs: int) -> list[int]:
    """Return ``sizes`` with both ends from the data."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise ConfigError(f"MLP.sizes must be a list of widths, got {sizes!r}")
    hidden = [size for size in sizes[1:-1] if size is not None and size > 0]
    if len(sizes) < 2 or len(hidden) != len(sizes) - 2:
        raise ConfigError(f"MLP.sizes must be at least two positive widths, null only at the ends, got {list(sizes)}")
    for place, size, needed, what in (("first", sizes[0], inputs, "features"), ("last", sizes[-1], outputs, "outputs")):
        if size not in (None, needed):
            raise ConfigError(f"MLP.sizes must have null or {needed} as its {place}, since the data has {needed} {what}, got {list(sizes)}")
    return [inputs, *hidden, outputs]

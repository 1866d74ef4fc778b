"""Dense layers."""

from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.base import CompressedLayer


class PQDense(CompressedLayer, nn.Linear):
    """``nn.Linear`` with a pruned and quantized weight, and quantizers around it.

    Takes the arguments of ``nn.Linear`` and, by keyword, ``pruning``, ``quantization`` (method objects) and ``name``.
    """

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``."""
        return F.linear(x, weight, bias)

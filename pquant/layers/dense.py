"""Dense layers."""

from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.base import Call, Calls, CompressedLayer


class PQDense(CompressedLayer, nn.Linear):
    """``nn.Linear`` with a pruned and quantized weight, and quantizers around it.

    Takes the arguments of ``nn.Linear`` and, by keyword, ``pruning``, ``quantization`` (method objects) and ``name``.
    """

    def calls_or_default(self) -> Calls:
        """Return the calls of the layer in one inference; without an example input a single call with one vector."""
        return self.calls or (Call((1, self.in_features), (1, self.out_features)),)

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return ``x @ weight.T + bias``."""
        return F.linear(x, weight, bias)

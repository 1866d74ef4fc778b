"""Parameters that the forward of a model uses directly: position embeddings, class tokens, factors of a residual branch."""

from typing import Any

from torch import Tensor, nn

from pquant.layers.base import Calls, QuantizedLayer
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import NoQuantizer, Quantizer


class Constant(nn.Module):
    """A layer that returns a parameter of its parent module unchanged.

    Args:
        shape: shape of the parameter.
        of: name of the parameter in the parent module.
    """

    def __init__(self, shape: tuple[int, ...], of: str) -> None:
        super().__init__()
        self.shape, self.of = tuple(shape), of

    def forward(self, input: Tensor) -> Tensor:
        """Return the parameter."""
        return input

    def extra_repr(self) -> str:
        """Return the name and the shape of the parameter."""
        return f"{self.of}, {self.shape}"


class PQConstant(QuantizedLayer, Constant):
    """A parameter with the format of a weight, quantized in each forward. A finalized model keeps the float values and the format."""

    tensors = ("weight",)
    shape: Any
    of: str

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        self.input_quantizer = self.output_quantizer = NoQuantizer()
        self.weight_quantizer = quantization.weight_quantizer(quantization.formats(name).weight, self.shape)

    def compute(self, x: Tensor) -> Tensor:
        """Return the quantized parameter."""
        return self.weight_quantizer(x)

    def is_quantized(self) -> bool:
        """Return whether the parameter is quantized."""
        return not self.weight_quantizer.is_float

    def output_source(self) -> Quantizer | None:
        """Return the quantizer of the parameter."""
        return None if self.weight_quantizer.is_float or self.weight_quantizer.width().ndim else self.weight_quantizer

    def finalized(self) -> nn.Module:
        """Replace the quantizer by one with the fixed format of the end of training."""
        super().finalized()
        self.weight_quantizer = self.weight_quantizer.finalized()
        return self

"""Layers that multiply two tensors, scale a tensor or average it. Their results need a new fixed-point format.

Sums, differences, concatenations and maxima need no quantizer: their values are multiples of the step of their inputs.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from pquant.errors import unknown
from pquant.layers.base import Calls, QuantizedLayer, Widths
from pquant.pruning.method import PruningMethod
from pquant.quantization.ebops import significant_bits
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import MantissaQuantizer, Quantizer

MERGES: dict[str, Callable[..., Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "matmul": torch.matmul,
    "einsum": lambda input, other, equation: torch.einsum(equation, input, other),
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}
"""Functions of two tensors."""
PRODUCTS = ("mul", "matmul", "einsum")
BY_CHANNEL = ("add", "sub", "mul", "maximum", "minimum")
"""Kinds whose inputs and result have their channels on the same axis."""


class Merge(nn.Module):
    """A function of two tensors as a layer.

    Args:
        kind: a name in ``MERGES``; the tensors broadcast as in that torch function.
        equation: equation with two inputs, for kind "einsum" only.

    Raises:
        ValueError: an ``equation`` with another kind, or kind "einsum" without one.
    """

    def __init__(self, kind: str, equation: str | None = None) -> None:
        if kind not in MERGES:
            raise ValueError(unknown("Merge.kind", kind, MERGES))
        if (kind == "einsum") != (equation is not None):
            raise ValueError(f"Merge: equation belongs to kind 'einsum', got kind '{kind}' and equation {equation!r}")
        super().__init__()
        self.kind, self.equation = kind, equation

    def forward(self, input: Tensor, other: Tensor) -> Tensor:
        """Return the function of both tensors."""
        return MERGES[self.kind](input, other) if self.equation is None else MERGES[self.kind](input, other, self.equation)

    def extra_repr(self) -> str:
        """Return the kind."""
        return self.kind if self.equation is None else f"{self.kind}, {self.equation}"


class PQMerge(QuantizedLayer, Merge):
    """A function of two tensors, each with its own quantizer; both quantizers have the format ``input`` of the layer.

    The EBOPs of "mul", "matmul" and "einsum" are the sum over all products of bits times bits of the factors. Other kinds cost no EBOPs.

    Takes the arguments of :class:`Merge` and, by keyword, ``quantization`` (method object) and ``name``.
    """

    input_quantizers = ("input_quantizer", "other_quantizer")
    other_quantizer: Quantizer

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        calls = calls if self.kind in BY_CHANNEL else tuple(call._replace(channel_axis=None) for call in calls)
        super()._equip(name, pruning, quantization, calls)

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        """Return the function of both tensors, quantized as set."""
        return self.output_quantizer(Merge.forward(self, self.input_quantizer(input), self.other_quantizer(other)))

    def counted(self) -> tuple[Quantizer, ...]:
        """Return the quantizers of both factors."""
        return (self.operand(0), self.operand(1)) if self.kind in PRODUCTS else ()

    def data_operations(self, widths: Widths) -> Tensor:
        """Return the sum over all products of the bits of both factors: the sum of the function, applied to bit widths."""
        if self.kind not in PRODUCTS:
            return super().data_operations(widths)
        bits = self.counted_bits(widths)
        total = bits[0].new_zeros(())
        for call in self.known_calls():
            total = total + Merge.forward(self, *(width.expand(part.input) for width, part in zip(bits, call.operands, strict=True))).sum()
        return total


def is_shift(number: float) -> bool:
    """Return whether a product with ``number`` is a bit shift: ``number`` is 0, a power of two, or minus one."""
    return math.isfinite(number) and math.frexp(abs(number))[0] in (0.0, 0.5)


class Scale(nn.Module):
    """A constant factor as a layer.

    Args:
        factor: any number.
        divides: whether the layer returns x / factor instead of x * factor.
    """

    def __init__(self, factor: float, divides: bool = False) -> None:
        super().__init__()
        self.factor, self.divides = float(factor), divides

    def forward(self, input: Tensor) -> Tensor:
        """Return the scaled input."""
        return input / self.factor if self.divides else input * self.factor

    def extra_repr(self) -> str:
        """Return the factor."""
        return f"1 / {self.factor}" if self.divides else f"{self.factor}"


class PQScale(QuantizedLayer, Scale):
    """A constant factor of quantized data. The factor keeps as many significant bits as a weight; a power of two costs no EBOPs."""

    tensors = ("weight", "input", "output")
    constant: Tensor

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        weight = quantization.formats(name).weight
        constant = torch.tensor(1 / self.factor if self.divides else self.factor)
        self.register_buffer(
            "constant", constant if is_shift(float(constant)) or not weight.enable else MantissaQuantizer(weight)(constant), persistent=False
        )

    def compute(self, x: Tensor) -> Tensor:
        """Return the scaled input."""
        return Scale.forward(self, x) if self.input_quantizer.is_float and self.output_quantizer.is_float else x * self.constant

    def counted(self) -> tuple[Quantizer, ...]:
        """Return the quantizer of the input."""
        return (self.operand(),)

    def data_operations(self, widths: Widths) -> Tensor:
        """Return the bits of all values times the bits of the constant; 0 for a power of two."""
        bits = significant_bits(self.constant)
        data = widths(self.operand())
        return sum((data.expand(call.input).sum() * bits * (bits > 1) for call in self.known_calls()), start=data.new_zeros(()))


class Mean(nn.Module):
    """The mean over axes as a layer.

    Args:
        dim: the axis or axes.
        keepdim: whether these axes stay, with size 1.
    """

    def __init__(self, dim: int | tuple[int, ...], keepdim: bool = False) -> None:
        super().__init__()
        self.dim, self.keepdim = dim, keepdim

    def forward(self, input: Tensor) -> Tensor:
        """Return the mean."""
        return input.mean(self.dim, self.keepdim)

    def extra_repr(self) -> str:
        """Return the axes."""
        return f"{self.dim}, keepdim={self.keepdim}"


class PQMean(QuantizedLayer, Mean):
    """The mean of quantized values over axes, quantized. Like an average pool it costs no EBOPs."""

    def compute(self, x: Tensor) -> Tensor:
        """Return the mean."""
        return Mean.forward(self, x)

"""Softmax, computed from tables of exponentials and reciprocals as in hardware."""

import math

import torch
from torch import Tensor, nn

from pquant.layers.base import Call, Calls, QuantizedLayer, Shape, Widths
from pquant.layers.merge import is_shift
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import MantissaQuantizer, Quantizer

MASKED = -1e6
"""Inputs of at most this value are masked: in float32 their exponential, relative to that of any usual value, is 0."""


class ScaledSoftmax(nn.Softmax):
    """softmax(scale * x) over one axis, as in attention.

    Args:
        dim: the axis.
        scale: constant factor of the input.
    """

    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__(dim)
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """Return softmax(scale * input)."""
        return super().forward(input * self.scale)

    def extra_repr(self) -> str:
        """Return the axis and the scale."""
        return f"{super().extra_repr()}, scale={self.scale}"


def reciprocal(x: Tensor) -> Tensor:
    """Return 1 / x, and 0 for 0."""
    return torch.where(x == 0, 0, 1 / x.masked_fill(x == 0, 1))


class PQSoftmax(QuantizedLayer, ScaledSoftmax):
    """Softmax of quantized values x: exp(x - max x), times the reciprocal of the sum of these exponentials.

    Exponentials and the reciprocal come from tables. Each has its own format: ``exponential_quantizer`` and ``reciprocal_quantizer``. The sum is
    exact. A constant ``scale`` that is not a power of two keeps as many significant bits as a weight. Masked inputs (minus infinity, or at most
    ``MASKED``) give exactly 0, also where all inputs are masked.

    Takes ``dim`` and ``scale`` and, by keyword, ``quantization`` (method object) and ``name``.
    """

    tensors = ("weight", "input", "output", "exponential", "reciprocal")
    exponential_quantizer: Quantizer
    reciprocal_quantizer: Quantizer
    dim: int
    scale: float

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        self.scale = float(getattr(self, "scale", 1.0))
        super()._equip(name, pruning, quantization, tuple(call._replace(channel_axis=None) for call in calls))
        formats = quantization.formats(name)
        self.exponential_quantizer = self._data_quantizer(formats.exponential, self.calls)
        self.reciprocal_quantizer = self._data_quantizer(formats.reciprocal, [call._replace(input=self._sums(call)) for call in self.calls])
        exact = is_shift(self.scale) or not formats.weight.enable
        self.factor = self.scale if exact else float(MantissaQuantizer(formats.weight)(torch.tensor(self.scale)))

    def connect(self, source: Quantizer, number: int = 0) -> None:
        """Connect the quantizer that produces the input, unless the layer scales the input: its own input quantizer is then needed."""
        if self.factor == 1:
            super().connect(source, number)

    def forward(self, input: Tensor) -> Tensor:
        """Return the softmax of ``input``, any shape."""
        if all(quantizer.is_float for quantizer in self.quantizers()):
            return ScaledSoftmax.forward(self, input)
        masked = input <= MASKED
        x = self.input_quantizer(input.masked_fill(masked, 0) * self.factor)
        largest = x.masked_fill(masked, -torch.inf).amax(self.dim, keepdim=True)
        distance = (largest - x).masked_fill(masked, 0)
        exponential = self.exponential_quantizer(self.tabled(torch.exp, -distance)).masked_fill(masked, 0)
        total = exponential.sum(self.dim, keepdim=True)
        inverse = self.reciprocal_quantizer(self.tabled(reciprocal, total))
        return self.output_quantizer(exponential * inverse)

    def counted(self) -> tuple[Quantizer, ...]:
        """Return the quantizers of both tables."""
        return self.exponential_quantizer, self.reciprocal_quantizer

    def data_operations(self, widths: Widths) -> Tensor:
        """Return the sum of bits times bits over all products of an exponential and a reciprocal."""
        exponential, reciprocal = self.counted_bits(widths)
        total = exponential.new_zeros(())
        for call in self.known_calls():
            total = total + self.built(call) * (exponential.expand(call.input) * reciprocal.expand(self._sums(call))).sum()
        return total

    def positions(self, call: Call) -> int:
        """Return how many sums of exponentials a call computes."""
        return math.prod(self._sums(call))

    def _sums(self, call: Call) -> Shape:
        """Return the shape of the sums in a call."""
        dim = self.dim % len(call.input)
        return (*call.input[:dim], 1, *call.input[dim + 1 :])

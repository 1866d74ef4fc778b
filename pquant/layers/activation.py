"""Activations."""

import math
from dataclasses import replace
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.base import NO_PRUNING, NO_QUANTIZATION, Calls, QuantizedLayer
from pquant.pruning.method import PruningMethod
from pquant.quantization.fixed_point import SATURATING
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import Quantizer


class _ShiftedReLU(torch.autograd.Function):
    """y = relu(x) * 2^round(m), straight through the rounding: dm = ln 2 * sum(g y)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exponent: Tensor) -> Tensor:
        factor = torch.exp2(torch.round(exponent))
        y = torch.relu(x).mul_(factor)
        ctx.save_for_backward(y, factor)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        y, factor = ctx.saved_tensors
        dx = torch.ops.aten.threshold_backward(grads[0], y, 0).mul_(factor)
        return dx, torch.dot(grads[0].flatten(), y.flatten()).mul_(math.log(2))


class PQActivation(QuantizedLayer):
    """ReLU or tanh with quantizers around it.

    A saturating input quantizer without negatives is a ReLU already: relu(q(x)) has the same values, so a quantized ReLU has such a quantizer
    and nothing else. With ``use_relu_multiplier`` it has a trained ``multiplier`` m instead and gives relu(x * 2^round(m)), a shift of bits in
    hardware. Without ``use_real_tanh`` a quantized tanh is the hard one, clamp(x, -1, 1).

    Args:
        kind: "relu" or "tanh".
        quantization: method object; without one, or switched off for this layer, the activation is torch's.
        name: dotted name of the layer, as ``layer_specific`` knows it.
    """

    multiplier: nn.Parameter | None

    def __init__(self, kind: Literal["relu", "tanh"], quantization: Quantization | None = None, name: str = "") -> None:
        if kind not in ("relu", "tanh"):
            raise ValueError(f"PQActivation.kind must be 'relu' or 'tanh', got {kind!r}")
        nn.Module.__init__(self)
        self.kind = kind
        self._equip(name, NO_PRUNING, quantization or NO_QUANTIZATION, ())

    @classmethod
    def from_float(cls, layer: nn.Module, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls = ()) -> Self:
        """Return the quantized activation in place of ``nn.ReLU`` or ``nn.Tanh``."""
        new = cls("relu" if isinstance(layer, nn.ReLU) else "tanh", name=name)
        new._equip(name, pruning, quantization, calls)
        return new.train(layer.training)

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        formats = quantization.formats(name)
        quantized = formats.input.enable or formats.output.enable
        self.hard = quantized and not quantization.use_real_tanh
        shifts = quantized and self.kind == "relu" and quantization.use_relu_multiplier
        self.multiplier = nn.Parameter(torch.zeros(())) if shifts else None
        self.rectifies = self.kind == "relu" and not shifts and formats.input.enable and formats.input.overflow_mode in SATURATING
        if self.rectifies:
            self.input_quantizer = quantization.data_quantizer(replace(formats.input, k=False), [inputs for inputs, _ in calls])

    def compute(self, x: Tensor) -> Tensor:
        """Return the activation of a quantized ``x``."""
        if self.kind == "tanh":
            return F.hardtanh(x) if self.hard else torch.tanh(x)
        if self.rectifies:
            return x
        return F.relu(x) if self.multiplier is None else _ShiftedReLU.apply(x, self.multiplier)

    def output_source(self) -> Quantizer | None:
        """Return the output's quantizer, else the input's where it is the ReLU itself."""
        if not self.output_quantizer.is_float:
            return self.output_quantizer
        return self.input_quantizer if self.rectifies else None

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Fix the shift at the whole number in force."""
        if self.multiplier is not None:
            self.multiplier.round_().requires_grad_(False)
        return super().finalized()

    def extra_repr(self) -> str:
        """Return the kind."""
        return self.kind

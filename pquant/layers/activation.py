"""Activations."""

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.compressed import NO_PRUNING, NO_QUANTIZATION, QuantizedLayer, Shape
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization


class _Shift(torch.autograd.Function):
    """x * 2^round(m), straight through the rounding: dm = ln 2 * sum(g y)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, exponent: Tensor) -> Tensor:
        factor = torch.exp2(torch.round(exponent))
        ctx.save_for_backward(x, factor)
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, factor = ctx.saved_tensors
        shifted = grads[0] * factor
        return shifted, torch.dot(shifted.flatten(), x.flatten()).mul_(math.log(2))


class PQActivation(QuantizedLayer):
    """ReLU or tanh with quantizers around it.

    With ``use_relu_multiplier`` a quantized ReLU has a trained ``multiplier`` m: it gives relu(x * 2^round(m)), a shift of bits in hardware. Without
    ``use_real_tanh`` a quantized tanh is the hard one, clamp(x, -1, 1).

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
    def from_float(
        cls, layer: nn.Module, name: str, pruning: PruningMethod, quantization: Quantization, calls: tuple[tuple[Shape, Shape], ...] = ()
    ) -> Self:
        """Return the quantized activation in place of ``nn.ReLU`` or ``nn.Tanh``."""
        new = cls("relu" if isinstance(layer, nn.ReLU) else "tanh", name=name)
        new._equip(name, pruning, quantization, calls)
        return new.train(layer.training)

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: tuple[tuple[Shape, Shape], ...]) -> None:
        super()._equip(name, pruning, quantization, calls)
        formats = quantization.formats(name)
        quantized = formats.input.enable or formats.output.enable
        self.hard = quantized and not quantization.use_real_tanh
        shifts = quantized and self.kind == "relu" and quantization.use_relu_multiplier
        self.multiplier = nn.Parameter(torch.zeros(())) if shifts else None

    def compute(self, x: Tensor) -> Tensor:
        """Return the activation of ``x``."""
        if self.kind == "tanh":
            return F.hardtanh(x) if self.hard else torch.tanh(x)
        return F.relu(x if self.multiplier is None else _Shift.apply(x, self.multiplier))

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Fix the shift at the whole number in force."""
        if self.multiplier is not None:
            self.multiplier.round_().requires_grad_(False)
        return super().finalized()

    def extra_repr(self) -> str:
        """Return the kind."""
        return self.kind

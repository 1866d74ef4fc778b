"""Activations."""

import copy
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.errors import unknown
from pquant.layers.base import NO_PRUNING, NO_QUANTIZATION, Calls, QuantizedLayer
from pquant.pruning.method import PruningMethod
from pquant.quantization.fixed_point import SATURATING
from pquant.quantization.hgq import round_straight_through
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import Quantizer

TABLES: dict[str, type[nn.Module]] = {
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "logsigmoid": nn.LogSigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "relu6": nn.ReLU6,
    "hardtanh": nn.Hardtanh,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "tanhshrink": nn.Tanhshrink,
    "softshrink": nn.Softshrink,
    "hardshrink": nn.Hardshrink,
}
"""Functions of one value beside ReLU and tanh: in hardware a table from the values of the input's format to those of the output's."""
KINDS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, **TABLES}


class PQActivation(QuantizedLayer):
    """A function of one value with quantizers around it: one of ``KINDS``.

    A saturating input quantizer without negatives is a ReLU already: relu(q(x)) has the same values, so a quantized ReLU has such a quantizer
    and nothing else. With ``use_relu_multiplier`` it has a trained ``multiplier`` m instead and gives relu(x * 2^round(m)), a shift of bits in
    hardware. Without ``use_real_tanh`` a quantized tanh is the hard one, clamp(x, -1, 1).

    Args:
        kind: "relu", "tanh" or a name in ``TABLES``.
        overwrites: whether the result replaces the values of the input, for what reads these again, as ``nn.ReLU(inplace=True)`` does.
        quantization: method object; without one, or switched off for this layer, the activation is torch's.
        name: dotted name of the layer, as ``layer_specific`` knows it.
    """

    multiplier: nn.Parameter | None
    weight: Tensor

    def __init__(self, kind: str, quantization: Quantization | None = None, name: str = "", overwrites: bool = False) -> None:
        if kind not in KINDS:
            raise ValueError(unknown("PQActivation.kind", kind, KINDS))
        nn.Module.__init__(self)
        self.kind, self.overwrites = kind, overwrites
        self._take(TABLES[kind]() if kind in TABLES else None)
        self._equip(name, NO_PRUNING, quantization or NO_QUANTIZATION, ())

    @classmethod
    def from_float(cls, layer: nn.Module, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls = ()) -> Self:
        """Return the quantized activation in place of torch's; one of ``TABLES`` keeps its constants and parameters."""
        kind = next(kind for kind, known in KINDS.items() if type(layer) is known)
        new = cls(kind, name=name, overwrites=getattr(layer, "inplace", False))
        if kind in TABLES:
            new._take(layer)
        new._equip(name, pruning, quantization, calls)
        return new.train(layer.training)

    def _take(self, layer: nn.Module | None) -> None:
        """Take over the function of a torch layer: its parameters under their names, and a copy of the layer for its constants, out of sight."""
        self.function: tuple[nn.Module, ...] = ()
        if layer is not None:
            self.function = (copy.copy(layer),)
            vars(self.function[0]).update(_parameters={}, inplace=False)
            for key, parameter in layer._parameters.items():
                self.register_parameter(key, parameter)

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        formats = quantization.formats(name)
        quantized = formats.input.enable or formats.output.enable
        self.hard = quantized and not quantization.use_real_tanh
        shifts = quantized and self.kind == "relu" and quantization.use_relu_multiplier
        self.multiplier = nn.Parameter(torch.zeros(())) if shifts else None
        self.rectifies = self.kind == "relu" and not shifts and formats.input.enable and formats.input.overflow_mode in SATURATING
        if self.rectifies:
            self.input_quantizer = quantization.data_quantizer(replace(formats.input, k=False), [(call.shared, call.channel_axis) for call in calls])

    def forward(self, input: Tensor) -> Tensor:
        """Return the activation of ``input``, which is overwritten where the torch layer did so and something reads it again."""
        if not self.overwrites:
            return super().forward(input)
        return input.copy_(super().forward(input.clone()))

    def compute(self, x: Tensor) -> Tensor:
        """Return the activation of a quantized ``x``."""
        if self.function or self.kind == "tanh" and not self.hard:
            return self.tabled(self._curve, x)
        if self.kind == "tanh":
            return F.hardtanh(x)
        if self.rectifies and not self.input_quantizer.is_float:
            return x
        return F.relu(x) if self.multiplier is None else F.relu(x) * torch.exp2(round_straight_through(self.multiplier))

    def _curve(self, x: Tensor) -> Tensor:
        if self.kind == "prelu":
            return F.prelu(x, self.weight.to(x.dtype))
        return self.function[0].forward(x) if self.function else torch.tanh(x)

    def quantizes(self, name: str) -> bool:
        """Return whether a parameter has become part of a table."""
        return not self.operand().is_float

    def output_source(self) -> Quantizer | None:
        """Return the output's quantizer, else the input's where it is the ReLU itself."""
        if not self.output_quantizer.is_float:
            return self.output_quantizer
        return self.operand() if self.rectifies else None

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Fix the shift at the whole number in force, and the parameters of the function."""
        if self.multiplier is not None:
            self.multiplier.round_().requires_grad_(False)
        for parameter in self._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(False)
        return super().finalized()

    def extra_repr(self) -> str:
        """Return the kind."""
        return self.kind

"""Quantized activations."""

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
"""Element-wise functions other than ReLU and tanh. Hardware implements each as a table that maps input values to output values."""
KINDS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, **TABLES}


class PQActivation(QuantizedLayer):
    """An element-wise function, one of ``KINDS``, with a quantizer for its input and one for its output.

    A saturating input quantizer q without negative values already acts as a ReLU: q(x) = relu(q(x)). A quantized ReLU therefore consists of such a
    quantizer alone. With ``use_relu_multiplier`` the layer instead trains a scalar ``multiplier`` m and returns relu(x * 2^round(m)), which is a bit
    shift in hardware. Without ``use_real_tanh`` a quantized tanh becomes a hard tanh, clamp(x, -1, 1).

    Args:
        kind: "relu", "tanh" or a name in ``TABLES``.
        overwrites: whether the layer writes its result into the input tensor, as ``nn.ReLU(inplace=True)`` does.
        quantization: method object; None, or a rule that switches quantization off for this layer, leaves torch's float activation.
        name: dotted name of the layer, which the rules of ``layer_specific`` match.
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
        """Return the quantized activation that replaces torch's ``layer``. A kind of ``TABLES`` keeps the constants and parameters of ``layer``."""
        kind = next(kind for kind, known in KINDS.items() if type(layer) is known)
        new = cls(kind, name=name, overwrites=getattr(layer, "inplace", False))
        if kind in TABLES:
            new._take(layer)
        new._equip(name, pruning, quantization, calls)
        return new.train(layer.training)

    def _take(self, layer: nn.Module | None) -> None:
        """Take over the function of a torch layer: register its parameters, and keep a copy of it, hidden from ``modules()``, for its constants."""
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
            self.input_quantizer = self._data_quantizer(replace(formats.input, k=False), calls)

    def forward(self, input: Tensor) -> Tensor:
        """Return the activation of ``input``, any shape. With ``overwrites`` the result is also written into ``input``."""
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
        """Return whether the parameter is part of a table: it is where the input of the layer is quantized."""
        return not self.operand().is_float

    def output_source(self) -> Quantizer | None:
        """Return the output quantizer. Without one, return the input quantizer if it acts as the ReLU, else None."""
        if not self.output_quantizer.is_float:
            return self.output_quantizer
        return self.operand() if self.rectifies else None

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Round the multiplier to its current whole number, freeze it and the parameters of the function, and return the layer."""
        if self.multiplier is not None:
            self.multiplier.round_().requires_grad_(False)
        for parameter in self._parameters.values():
            if parameter is not None:
                parameter.requires_grad_(False)
        return super().finalized()

    def extra_repr(self) -> str:
        """Return the kind."""
        return self.kind

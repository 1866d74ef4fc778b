"""Norms by the statistics of each example: layer norm, group norm, instance norm and RMS norm."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pquant.layers.base import Call, Calls, QuantizedLayer, Widths
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import FLOAT_BITS, FoldedQuantizer, MantissaQuantizer, NoQuantizer, Quantizer


class _Norm(QuantizedLayer):
    """(x - mean) / sigma * weight + bias, with the mean and sigma of each group of values in each example.

    The sums of values and of squares are exact. 1 / sigma comes from a table; weight and bias act by feature. These three keep the number of
    significant bits of the formats ``reciprocal``, ``weight`` and ``bias``. Each value has its own binary point, since the ranges are not known
    beforehand.

    EBOPs count three products for each value: its square, its product with 1 / sigma, and its product with the weight. The value counts with the bits
    of the input in each.
    """

    weight: Any
    bias: Any
    eps: Any
    reciprocal_quantizer: Quantizer
    tensors: ClassVar[tuple[str, ...]] = ("weight", "bias", "input", "output", "reciprocal")
    centres = True

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        formats = quantization.formats(name)
        for tensor in ("weight", "bias", "reciprocal"):
            settings = getattr(formats, tensor)
            there = tensor == "reciprocal" or getattr(self, tensor, None) is not None
            setattr(self, f"{tensor}_quantizer", MantissaQuantizer(settings) if settings.enable and there else NoQuantizer())

    def axes(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return ``x`` in a shape where whole axes share their statistics, and these axes."""
        raise NotImplementedError

    def compute(self, x: Tensor) -> Tensor:
        """Return the normalized ``x``."""
        if all(quantizer.is_float for quantizer in self.quantizers()):
            return super(QuantizedLayer, self).forward(x)
        grouped, axes = self.axes(x)
        if self.centres:
            grouped = grouped - grouped.mean(axes, keepdim=True)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        reciprocal = self.reciprocal_quantizer(self.tabled(lambda variance: torch.rsqrt(variance + eps), grouped.square().mean(axes, keepdim=True)))
        return self.scaled((grouped * reciprocal).reshape(x.shape), *self._values())

    def by_feature(self, values: Tensor, x: Tensor) -> Tensor:
        """Return a weight or bias in a shape that broadcasts with ``x``."""
        raise NotImplementedError

    def scaled(self, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        """Return x * weight + bias, by feature."""
        y = x if weight is None else x * self.by_feature(weight, x)
        return y if bias is None else y + self.by_feature(bias, x)

    def _values(self) -> tuple[Tensor | None, Tensor | None]:
        weight, bias = (None if values is None else getattr(self, f"{name}_quantizer")(values) for name, values in self._named())
        return weight, bias

    @torch.no_grad()
    def finalized_parameters(self) -> tuple[Tensor, Tensor | None] | None:
        """Return the quantized weight and bias; None for a norm without weight."""
        weight, bias = self._values()
        return None if weight is None else (weight, bias)

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x * weight + bias, by feature."""
        return self.scaled(x, weight, bias)

    def bit_operations(self, widths: Widths) -> Tensor:
        """Return the EBOPs, differentiable in the bits of the input; the bits of weight and bias are fixed."""
        total = self.data_operations(widths)
        weight, bias = (None if values is None else torch.full_like(values, self._significant(name)) for name, values in self._named())
        return total if weight is None else total + self.operations(weight, bias, widths(self.operand()))

    def _named(self) -> list[tuple[str, Tensor | None]]:
        return [("weight", self.weight), ("bias", getattr(self, "bias", None))]

    def _significant(self, name: str) -> float:
        """Return the bits that a weight, bias or reciprocal counts in EBOPs: its significant bits, or 32 if it is float."""
        quantizer = getattr(self, f"{name}_quantizer")
        return float(quantizer.significant if isinstance(quantizer, MantissaQuantizer) else FLOAT_BITS)

    def counted(self) -> tuple[Quantizer, ...]:
        """Return the quantizer of the input."""
        return (self.operand(),)

    def data_operations(self, widths: Widths) -> Tensor:
        """Return the EBOPs of all squares and of all products with 1 / sigma."""
        data = widths(self.operand())
        total = data.new_zeros(())
        for call in self.known_calls():
            bits = data.expand(call.input)
            total = total + self.built(call) * (bits * (bits + self._significant("reciprocal"))).sum()
        return total

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Replace weight and bias by their quantized values and return the layer."""
        super().finalized()
        weight, bias = self._values()
        for name, values in (("weight", weight), ("bias", bias)):
            if values is not None:
                quantizer = getattr(self, f"{name}_quantizer")
                if isinstance(quantizer, MantissaQuantizer):
                    setattr(self, f"{name}_quantizer", FoldedQuantizer(*quantizer.format_of(values)))
                setattr(self, name, nn.Parameter(values.clone(), requires_grad=False))
        return self


class _LastAxesNorm(_Norm):
    """A norm over the last axes of the input, whose shape is ``normalized_shape``, the shape of the weight."""

    normalized_shape: tuple[int, ...]

    def axes(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return ``x`` and the normalized axes, the last ones."""
        return x, tuple(range(-len(self.normalized_shape), 0))

    def by_feature(self, values: Tensor, x: Tensor) -> Tensor:
        """Return ``values`` unchanged, since they have the shape of the last axes."""
        return values

    def positions(self, call: Call) -> int:
        """Return how many groups of values have a common mean and sigma."""
        return math.prod(call.output) // max(math.prod(self.normalized_shape), 1)


class PQLayerNorm(_LastAxesNorm, nn.LayerNorm):
    """``nn.LayerNorm`` with a quantized 1 / sigma, weight and bias, and quantizers around it."""


class PQRMSNorm(_LastAxesNorm, nn.RMSNorm):
    """``nn.RMSNorm`` with a quantized 1 / rms and weight, and quantizers around it: B. Zhang, R. Sennrich, arXiv 1910.07467."""

    tensors = ("weight", "input", "output", "reciprocal")
    centres = False


class PQGroupNorm(_Norm, nn.GroupNorm):
    """``nn.GroupNorm`` with a quantized 1 / sigma, weight and bias, and quantizers around it."""

    def axes(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return ``x`` as (batch, groups, values) and the last axis."""
        return x.reshape(len(x), self.num_groups, math.prod(x.shape[1:]) // self.num_groups), (2,)

    def by_feature(self, values: Tensor, x: Tensor) -> Tensor:
        """Return ``values`` along the second axis."""
        return values.view(-1, *(1,) * (x.ndim - 2))


class _InstanceNorm(_Norm):
    rank: int
    _check_input_dim: Any

    def compute(self, x: Tensor) -> Tensor:
        """Return the normalized ``x``.

        Raises:
            ValueError: ``x`` does not have the number of axes that the layer takes.
        """
        self._check_input_dim(x)
        return super().compute(x)

    def axes(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return ``x`` and its spatial axes, the last ones."""
        return x, tuple(range(-self.rank, 0))

    def by_feature(self, values: Tensor, x: Tensor) -> Tensor:
        """Return ``values`` along the axis before the spatial ones."""
        return values.view(-1, *(1,) * self.rank)


class PQInstanceNorm1d(_InstanceNorm, nn.InstanceNorm1d):
    """``nn.InstanceNorm1d`` with a quantized 1 / sigma, weight and bias, and quantizers around it."""

    rank = 1


class PQInstanceNorm2d(_InstanceNorm, nn.InstanceNorm2d):
    """``nn.InstanceNorm2d`` with a quantized 1 / sigma, weight and bias, and quantizers around it."""

    rank = 2


class PQInstanceNorm3d(_InstanceNorm, nn.InstanceNorm3d):
    """``nn.InstanceNorm3d`` with a quantized 1 / sigma, weight and bias, and quantizers around it."""

    rank = 3

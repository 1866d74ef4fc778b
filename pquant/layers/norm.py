"""Batch norm, as the multiplication and addition by channel that hardware does."""

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.flat import addresses
from pquant.layers.base import Calls, QuantizedLayer
from pquant.pruning.method import PruningMethod
from pquant.quantization import kernels
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import BakedQuantizer, MantissaQuantizer, NoQuantizer, Quantizer


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 2))


class ChannelAffine(QuantizedLayer):
    """x * weight + bias by channel: what a batch norm is once finalized. ``weight`` and ``bias`` are (channels,), quantized for good."""

    def __init__(self, norm: "_BatchNorm") -> None:
        nn.Module.__init__(self)
        self.name, self.calls, self.quantization, self.source = norm.name, norm.calls, norm.quantization, norm.source
        self.input_quantizer, self.output_quantizer = norm.input_quantizer, norm.output_quantizer
        scale, shift = norm.scale_and_shift()
        self.weight = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(shift, requires_grad=False)
        self.weight_quantizer, self.bias_quantizer = (_baked(norm.weight_quantizer, scale), _baked(norm.bias_quantizer, shift))
        self.eval()

    def deployed(self) -> tuple[Tensor, Tensor]:
        """Return (weight, bias)."""
        return self.weight, self.bias

    def compute(self, x: Tensor) -> Tensor:
        """Return x * weight + bias."""
        return x * _by_channel(self.weight, x) + _by_channel(self.bias, x)


def _baked(quantizer: Quantizer, values: Tensor) -> Quantizer:
    return BakedQuantizer(*quantizer.format_of(values)) if isinstance(quantizer, MantissaQuantizer) else quantizer


@cache
def _loops() -> ModuleType:
    from pquant.layers import loops

    return loops


class _Folded(torch.autograd.Function):
    """What :meth:`_BatchNorm.moved` gives, by a loop; straight through the quantizers, and 0 where they clip."""

    @staticmethod
    def forward(ctx: Any, norm: "_BatchNorm", gamma: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
        ctx.rows, sigma = torch.empty(6, len(gamma)), torch.sqrt(norm.running_var + norm.eps)
        kinds = tuple(one.kind for one in (norm.weight_quantizer, norm.bias_quantizer))
        _loops().folded(addresses(gamma, beta, norm.running_mean, sigma), len(gamma), kinds, ctx.rows.data_ptr())
        return ctx.rows[0].clone(), ctx.rows[1].clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given, slopes = [grad.contiguous() for grad in grads], torch.empty(2, len(grads[0]))
        _loops().folded_slopes(addresses(*given), len(given[0]), ctx.rows.data_ptr(), slopes.data_ptr())
        return None, *slopes.unbind()


class _BatchNorm(QuantizedLayer):
    """Batch norm whose scale gamma / sigma and shift beta - mu * scale are quantized with the weight's and the bias's number of bits.

    Each channel has its own binary point, as gamma / sigma has no range known beforehand. In training the batch's own statistics normalize,
    and gamma and beta are moved so that the running statistics would give the quantized scale and shift; in evaluation those are used themselves.
    """

    weight_quantizer: Quantizer
    bias_quantizer: Quantizer
    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    momentum: float | None
    eps: float

    def _equip(self, name: str, pruning: PruningMethod, quantization: Quantization, calls: Calls) -> None:
        super()._equip(name, pruning, quantization, calls)
        formats = quantization.formats(name)
        self.weight_quantizer = MantissaQuantizer(formats.weight) if formats.weight.enable else NoQuantizer()
        self.bias_quantizer = MantissaQuantizer(formats.bias) if formats.bias.enable else NoQuantizer()

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the quantized (scale, shift), each (channels,), of the running statistics."""
        return self._scale_and_shift(self.running_mean.clone(), torch.sqrt(self.running_var + self.eps))

    def _scale_and_shift(self, mean: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.weight_quantizer((torch.ones_like(sigma) if self.weight is None else self.weight) / sigma)
        beta = torch.zeros_like(sigma) if self.bias is None else self.bias
        return scale, self.bias_quantizer(beta - mean * scale)

    def moved(self) -> tuple[Tensor, Tensor]:
        """Return gamma and beta, each (channels,), with which the running statistics give the quantized scale and shift.

        They are taken from a copy, as the forward that asks for them changes the statistics before its backward. It is a copy by ``cat``, which
        compiled graphs keep for backward; that of ``clone`` they make anew there, from what the statistics are by then.
        """
        quantizers, tensors = (self.weight_quantizer, self.bias_quantizer), (self.weight, self.bias, self.running_mean, self.running_var)
        if all(type(one) is MantissaQuantizer for one in quantizers) and all(map(kernels.take, tensors)):
            return _Folded.apply(self, self.weight, self.bias)
        mean, variance = torch.cat((self.running_mean, self.running_var)).chunk(2)
        sigma = torch.sqrt(variance + self.eps)
        scale, shift = self._scale_and_shift(mean, sigma)
        return scale * sigma, shift + mean * scale

    def deployed(self) -> tuple[Tensor, Tensor]:
        """Return the scale and shift of the running statistics."""
        return self.scale_and_shift()

    def compute(self, x: Tensor) -> Tensor:
        """Return the normalized ``x``."""
        if self._stays_float():
            return super(QuantizedLayer, self).forward(x)
        if not self.training:
            scale, shift = self.scale_and_shift()
            return x * _by_channel(scale, x) + _by_channel(shift, x)
        gamma, beta = self.moved()
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return F.batch_norm(x, self.running_mean, self.running_var, gamma, beta, True, momentum, self.eps)

    def _stays_float(self) -> bool:
        return self.weight_quantizer.is_float and self.bias_quantizer.is_float

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Return the scale and shift by channel that this batch norm has become; itself where neither is quantized."""
        super().finalized()
        return self.requires_grad_(False) if self._stays_float() else ChannelAffine(self)


class PQBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` with quantized scale and shift, and quantizers around it."""


class PQBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with quantized scale and shift, and quantizers around it."""


class PQBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` with quantized scale and shift, and quantizers around it."""

"""Batch norm, quantized as the multiplication and addition per channel that hardware computes."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.base import Call, Calls, QuantizedLayer
from pquant.pruning.method import PruningMethod
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import FoldedQuantizer, MantissaQuantizer, NoQuantizer, Quantizer
from pquant.training import distributed


def _by_channel(values: Tensor, x: Tensor) -> Tensor:
    return values.view(-1, *(1,) * (x.ndim - 2))


class _ChannelwiseLayer(QuantizedLayer):
    """A layer that multiplies each channel by a weight and adds a bias."""

    tensors = ("weight", "bias", "input", "output")

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return x * weight + bias by channel."""
        y = x * _by_channel(weight, x)
        return y if bias is None else y + _by_channel(bias, x)

    def positions(self, call: Call) -> int:
        """Return how many positions the input has; each position holds one value per channel."""
        return math.prod(call.input[2:])


class ChannelAffine(_ChannelwiseLayer):
    """x * weight + bias by channel: a finalized batch norm. ``weight`` and ``bias`` have shape (channels,) and hold quantized values."""

    def __init__(self, norm: "_BatchNorm") -> None:
        nn.Module.__init__(self)
        self.name, self.calls, self.quantization, self.sources, self.regularization = norm.name, norm.calls, norm.quantization, norm.sources, None
        self.cost, self.counting = norm.cost, norm.counting
        self.input_quantizer, self.output_quantizer = norm.input_quantizer, norm.output_quantizer
        scale, shift = norm.scale_and_shift()
        self.weight = nn.Parameter(scale, requires_grad=False)
        self.bias = nn.Parameter(shift, requires_grad=False)
        self.weight_quantizer, self.bias_quantizer = (_folded(norm.weight_quantizer, scale), _folded(norm.bias_quantizer, shift))
        self.eval()

    def finalized_parameters(self) -> tuple[Tensor, Tensor]:
        """Return (weight, bias)."""
        return self.weight, self.bias

    def compute(self, x: Tensor) -> Tensor:
        """Return x * weight + bias."""
        return self.linear_map(x, self.weight, self.bias)


def _folded(quantizer: Quantizer, values: Tensor) -> Quantizer:
    return FoldedQuantizer(*quantizer.format_of(values)) if isinstance(quantizer, MantissaQuantizer) else quantizer


class _BatchNorm(_ChannelwiseLayer):
    """Batch norm whose scale gamma / sigma and shift beta - mu * scale are quantized, with as many significant bits as weight and bias have.

    Each channel has its own binary point, since the range of gamma / sigma is not known beforehand. In training, the batch is normalized with its own
    statistics, then multiplied by gamma and shifted by beta. These two are chosen so that the running statistics give exactly the quantized scale
    and shift. In evaluation the quantized scale and shift are applied directly.

    Under ``torch.utils.checkpoint`` the second forward sees running statistics that the first forward has updated, as in torch's batch norm. Here
    gamma and beta depend on them, so that gradients have a relative error of a few tenths of a per cent once the statistics have settled.
    """

    weight: Any
    bias: Any
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any
    momentum: float | None
    eps: float
    synchronized: bool = False

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
        """Return gamma and beta, each (channels,), for which the running statistics give the quantized scale and shift.

        They are computed from a copy of the running statistics, since the forward updates the statistics before its backward runs. ``cat`` makes the
        copy, because torch.compile saves the result of ``cat`` for backward but repeats a ``clone`` there, when the statistics have changed
        (pytorch/pytorch#197039). ``cat`` also joins the result, which torch.compile would otherwise compute again for each value of the batch.
        """
        mean, variance = torch.cat((self.running_mean, self.running_var)).chunk(2)
        sigma = torch.sqrt(variance + self.eps)
        scale, shift = self._scale_and_shift(mean, sigma)
        gamma, beta = torch.cat((scale * sigma, shift + mean * scale)).chunk(2)
        return gamma, beta

    def finalized_parameters(self) -> tuple[Tensor, Tensor]:
        """Return the scale and shift of the running statistics."""
        return self.scale_and_shift()

    def compute(self, x: Tensor) -> Tensor:
        """Return the normalized ``x``.

        Raises:
            ValueError: ``x`` does not have the number of axes that the batch norm takes.
        """
        self._check_input_dim(x)  # type: ignore[operator]
        stays_float = self._stays_float()
        if stays_float and not (self.training and self.synchronized):
            return super(QuantizedLayer, self).forward(x)
        if not self.training:
            return self.linear_map(x, *self.scale_and_shift())
        gamma, beta = (self.weight, self.bias) if stays_float else self.moved()
        self.num_batches_tracked.add_(1)
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        if self.synchronized:
            return self._normalized_over_processes(x, gamma, beta, momentum)
        return F.batch_norm(x, self.running_mean, self.running_var, gamma, beta, True, momentum, self.eps)

    def _normalized_over_processes(self, x: Tensor, gamma: Tensor | None, beta: Tensor | None, momentum: float) -> Tensor:
        """Return ``x`` normalized by the statistics of the batch over all processes, and update the running statistics with them."""
        mean, variance, number = distributed.batch_statistics(x)
        with torch.no_grad():
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(variance * number / (number - 1), momentum)
        y = (x - _by_channel(mean, x)) * _by_channel(torch.rsqrt(variance + self.eps), x)
        y = y if gamma is None else y * _by_channel(gamma, x)
        return y if beta is None else y + _by_channel(beta, x)

    def _stays_float(self) -> bool:
        return self.weight_quantizer.is_float and self.bias_quantizer.is_float

    @torch.no_grad()
    def finalized(self) -> nn.Module:
        """Return a :class:`ChannelAffine` with the quantized scale and shift, or this layer where neither is quantized."""
        super().finalized()
        return self.requires_grad_(False) if self._stays_float() else ChannelAffine(self)


class PQBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """``nn.BatchNorm1d`` with quantized scale and shift, and quantizers around it."""


class PQBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """``nn.BatchNorm2d`` with quantized scale and shift, and quantizers around it."""


class PQBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """``nn.BatchNorm3d`` with quantized scale and shift, and quantizers around it."""


def synchronize(model: nn.Module) -> None:
    """Let the batch norms of a compressed model use the batch statistics over all processes that train it. With one process nothing changes."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.synchronized = distributed.count() > 1

"""Convolutions and transposed convolutions: with any groups, stride, padding and dilation that torch supports."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from pquant.layers.base import CompressedLayer


class _Convolution(CompressedLayer):
    _conv_forward: Callable[[Tensor, Tensor, Tensor | None], Tensor]

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the convolution of ``x`` with the given parameters."""
        return self._conv_forward(x, weight, bias)


class PQConv1d(_Convolution, nn.Conv1d):
    """``nn.Conv1d`` with a pruned and quantized weight; see :class:`pquant.layers.PQDense`."""


class PQConv2d(_Convolution, nn.Conv2d):
    """``nn.Conv2d`` with a pruned and quantized weight; see :class:`pquant.layers.PQDense`."""


class PQConv3d(_Convolution, nn.Conv3d):
    """``nn.Conv3d`` with a pruned and quantized weight; see :class:`pquant.layers.PQDense`."""


class _Transposed(CompressedLayer):
    """A transposed convolution. Pruners and quantizers take its weight as that of a convolution: (outputs, inputs / groups, *kernel)."""

    function: ClassVar[Callable[..., Tensor]]
    groups: int
    kernel_size: tuple[int, ...]
    stride: Any
    padding: Any
    output_padding: Any
    dilation: Any
    _output_padding: Any

    def arranged(self, weight: Tensor) -> Tensor:
        """Return a weight (inputs, outputs / groups, *kernel) as (outputs, inputs / groups, *kernel)."""
        return self._swapped(weight)

    def stored(self, weight: Tensor) -> Tensor:
        """Return a weight (outputs, inputs / groups, *kernel) as (inputs, outputs / groups, *kernel)."""
        return self._swapped(weight)

    def _swapped(self, weight: Tensor) -> Tensor:
        kernel = weight.shape[2:]
        grouped = weight.reshape(self.groups, -1, weight.shape[1], *kernel).transpose(1, 2)
        return grouped.reshape(-1, weight.shape[0] // self.groups, *kernel)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return the layer's output for ``input``, both quantized as set. ``output_size`` has the meaning of torch's layer."""
        if output_size is None:
            return super().forward(input)
        x = self.input_quantizer(input)
        padding = self._output_padding(input, output_size, self.stride, self.padding, self.kernel_size, len(self.kernel_size), self.dilation)
        y = self.linear_map(x, *self.effective(), padding)
        self.show(x, y)
        return self.output_quantizer(y)

    def linear_map(self, x: Tensor, weight: Tensor, bias: Tensor | None, output_padding: Any = None) -> Tensor:
        """Return the transposed convolution of ``x`` with the given parameters."""
        padding = self.output_padding if output_padding is None else output_padding
        return type(self).function(x, self.stored(weight), bias, self.stride, self.padding, padding, self.groups, self.dilation)


class PQConvTranspose1d(_Transposed, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` with a pruned and quantized weight; see :class:`pquant.layers.PQDense`."""

    function = staticmethod(F.conv_transpose1d)


class PQConvTranspose2d(_Transposed, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` with a pruned and quantized weight; see :class:`pquant.layers.PQDense`."""

    function = staticmethod(F.conv_transpose2d)


class PQConvTranspose3d(_Transposed, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` with a pruned and quantized weight; see :class:`pquant.layers.PQDense`."""

    function = staticmethod(F.conv_transpose3d)

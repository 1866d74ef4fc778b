"""Convolutions: any groups, stride, padding and dilation that torch has."""

from collections.abc import Callable

from torch import Tensor, nn

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

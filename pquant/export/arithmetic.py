"""The arithmetic of each layer, for any kind of values that implements hardware arithmetic."""

import math
from collections.abc import Callable
from functools import cache, singledispatch
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.export.formats import Constants, Format
from pquant.export.windows import PADDING, padding, pool_sizes, pool_windows, transposed_windows, windows
from pquant.layers.activation import PQActivation
from pquant.layers.base import CompressedLayer
from pquant.layers.conv import PQConv1d, PQConv2d, PQConv3d, PQConvTranspose1d, PQConvTranspose2d, PQConvTranspose3d
from pquant.layers.dense import PQDense
from pquant.layers.norm import ChannelAffine, PQBatchNorm1d, PQBatchNorm2d, PQBatchNorm3d
from pquant.layers.pool import PQAvgPool1d, PQAvgPool2d, PQAvgPool3d, PQMaxPool1d, PQMaxPool2d, PQMaxPool3d

CONVOLUTIONS = (PQConv1d, PQConv2d, PQConv3d)
TRANSPOSED = (PQConvTranspose1d, PQConvTranspose2d, PQConvTranspose3d)
NORMS = (PQBatchNorm1d, PQBatchNorm2d, PQBatchNorm3d)
AVERAGES = (PQAvgPool1d, PQAvgPool2d, PQAvgPool3d)
MAXIMA = (PQMaxPool1d, PQMaxPool2d, PQMaxPool3d)
Function = Callable[[np.ndarray], np.ndarray]


class Values(Protocol):
    """The values that a model is computed with; see :class:`pquant.export.fixed.Fixed`."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def gather(self, index: np.ndarray, *others: Any) -> Any: ...  # noqa: D102

    def dot(self, weight: Constants) -> Any: ...  # noqa: D102

    def times(self, factors: Constants) -> Any: ...  # noqa: D102

    def plus(self, terms: Constants) -> Any: ...  # noqa: D102

    def add(self, other: Any, sign: int = 1) -> Any: ...  # noqa: D102

    def multiply(self, other: Any) -> Any: ...  # noqa: D102

    def extreme(self, which: Any) -> Any: ...  # noqa: D102

    def constant(self, values: Constants) -> Any: ...  # noqa: D102

    def shift(self, bits: int) -> Any: ...  # noqa: D102

    def quantize(self, form: Format) -> Any: ...  # noqa: D102

    def relu(self) -> Any: ...  # noqa: D102

    def clip(self, bound: int) -> Any: ...  # noqa: D102

    def real(self, functions: Function | np.ndarray) -> Any: ...  # noqa: D102

    def table(self, function: Function) -> Any: ...  # noqa: D102


@singledispatch
def compute(layer: nn.Module, shape: tuple[int, ...], *inputs: Any) -> Any:
    """Return the result of a finalized layer for its quantized inputs, before its output quantizer; ``shape`` is that of the result.

    Raises:
        ConfigError: hardware cannot compute the layer.
    """
    raise ConfigError(f"{type(layer).__name__} is not supported")


def is_supported(layer: nn.Module) -> bool:
    """Return whether :func:`compute` knows a layer."""
    return compute.dispatch(type(layer)) is not compute.dispatch(object)


def quantized(value: Any, quantizer: Any) -> Any:
    """Return values quantized by a finalized quantizer."""
    form = Format.of(quantizer)
    return value if form is None else value.quantize(form)


def parameters(layer: Any, which: str) -> Constants:
    """Return a finalized layer's weight or bias as integers; the weight of a transposed convolution has its outputs first."""
    values = getattr(layer, which)
    arranged = layer.arranged(values) if which == "weight" and isinstance(layer, CompressedLayer) else values
    return Constants.of(f"{which} of layer '{layer.name}'", arranged, getattr(layer, f"{which}_quantizer"))


def reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    """Return values in another shape."""
    return x.gather(np.arange(math.prod(shape)).reshape(shape))


def total(x: Any) -> Any:
    """Return the sums over the last axis."""
    *lead, size = x.shape
    return reshaped(reshaped(x, (*lead, 1, size)).dot(Constants(np.ones((1, size, 1), np.int64), 0)), tuple(lead))


def mean(x: Any) -> Any:
    """Return the means over the last axis; they are real values if the number of values is not a power of 2."""
    return averaged(total(x), np.array(x.shape[-1]))


def averaged(sums: Any, sizes: np.ndarray) -> Any:
    """Return sums divided by sizes that broadcast with them: as a shift if all sizes are the same power of 2, else as real values."""
    different = {int(size) for size in sizes.flat}
    if len(different) == 1 and (size := different.pop()) > 0 and size.bit_count() == 1:
        return sums.shift(-(size.bit_length() - 1))
    functions = np.empty(sizes.size, dtype=object)
    functions[:] = [_divided_by(int(size)) for size in sizes.flat]
    return sums.real(functions.reshape(sizes.shape))


@cache
def _divided_by(size: int) -> Function:
    return lambda values: values / size


def in_float32(function: Callable[[Tensor], Tensor]) -> Function:
    """Return a function of float64 arrays that computes a torch function in float32."""
    return lambda values: function(torch.from_numpy(values).float()).double().numpy()


@compute.register
def _(layer: PQDense, shape: tuple[int, ...], x: Any) -> Any:
    weight = parameters(layer, "weight")
    lead, inputs, outputs = x.shape[:-1], layer.in_features, layer.out_features
    y = reshaped(x, (*lead, 1, inputs)).dot(Constants(weight.n.T[None], weight.f))
    return _biased(reshaped(y, shape), layer, (outputs,))


def _convolution(layer: Any, shape: tuple[int, ...], x: Any) -> Any:
    patches = windows(x.shape, layer.kernel_size, layer.stride, padding(layer), layer.dilation, PADDING[layer.padding_mode])
    return _convolved(layer, shape, x, patches, parameters(layer, "weight"))


def _transposed(layer: Any, shape: tuple[int, ...], x: Any) -> Any:
    weight = parameters(layer, "weight")
    reverse = np.flip(weight.n, tuple(range(2, weight.n.ndim)))
    return _convolved(layer, shape, x, transposed_windows(x.shape, layer, shape[1:]), Constants(reverse, weight.f))


def _convolved(layer: Any, shape: tuple[int, ...], x: Any, patches: np.ndarray, weight: Constants) -> Any:
    """Return the products of a weight (outputs, inputs / groups, *kernel) with patches (inputs, *positions, *kernel)."""
    groups, positions = layer.groups, shape[1:]
    by_position = np.moveaxis(patches.reshape(groups, -1, *positions, math.prod(layer.kernel_size)), (0, 1), (-3, -2))
    kernel = weight.n.reshape(groups, layer.out_channels // groups, -1).swapaxes(1, 2)
    y = x.gather(by_position.reshape(*positions, groups, -1)).dot(Constants(kernel, weight.f))
    by_channel = np.moveaxis(np.arange(math.prod(y.shape)).reshape(*positions, -1), -1, 0)
    return _biased(y.gather(by_channel), layer, (-1, *(1,) * len(positions)))


def _biased(y: Any, layer: CompressedLayer, shape: tuple[int, ...]) -> Any:
    return y if layer.bias is None else y.plus(parameters(layer, "bias").reshape(*shape))


@compute.register
def _(layer: ChannelAffine, shape: tuple[int, ...], x: Any) -> Any:
    factors, terms = (parameters(layer, which).reshape(-1, *(1,) * (len(shape) - 1)) for which in ("weight", "bias"))
    return x.times(factors).plus(terms)


def _average(layer: Any, shape: tuple[int, ...], x: Any) -> Any:
    values = x.gather(pool_windows(x.shape, layer, shape[1:]).reshape(*shape, -1))
    sizes = pool_sizes(x.shape, layer, shape[1:])
    return averaged(total(values), sizes)


def _maximum(layer: Any, shape: tuple[int, ...], x: Any) -> Any:
    places = pool_windows(x.shape, layer, shape[1:]).reshape(*shape, -1)
    return x.gather(np.where(places < 0, places.max(-1, keepdims=True), places)).extreme("max")


for kinds, function in ((CONVOLUTIONS, _convolution), (TRANSPOSED, _transposed), (AVERAGES, _average), (MAXIMA, _maximum)):
    for kind in kinds:
        compute.register(kind, function)


@compute.register
def _(layer: PQActivation, shape: tuple[int, ...], x: Any) -> Any:
    if layer.kind == "prelu":
        slopes = layer.weight.detach().cpu().flatten()
        functions = np.empty(len(slopes), dtype=object)
        functions[:] = [in_float32(lambda values, slope=slope: nn.functional.prelu(values, slope)) for slope in slopes]  # type: ignore[misc]
        return x.real(functions.reshape(-1, *(1,) * (len(shape) - 1)))
    if layer.function or layer.kind == "tanh" and not layer.hard:
        return x.real(in_float32(layer.compute))
    if layer.kind == "tanh":
        return x.clip(1)
    if layer.rectifies and not layer.input_quantizer.is_float:
        return x
    return x.relu() if layer.multiplier is None else x.relu().shift(int(layer.multiplier))

"""The arithmetic of layers that multiply data with data: merges, softmax, and norms by the statistics of an example."""

import string
from typing import Any

import numpy as np
import torch

from pquant.errors import ConfigError
from pquant.export.arithmetic import compute, in_float32, mean, parameters, quantized, reshaped, total
from pquant.export.formats import Constants
from pquant.layers.layer_norm import PQGroupNorm, PQInstanceNorm1d, PQInstanceNorm2d, PQInstanceNorm3d, PQLayerNorm, PQRMSNorm
from pquant.layers.merge import PRODUCTS, PQMean, PQMerge, PQScale
from pquant.layers.softmax import PQSoftmax, reciprocal

STATISTICS = (PQLayerNorm, PQRMSNorm, PQGroupNorm, PQInstanceNorm1d, PQInstanceNorm2d, PQInstanceNorm3d)
SIGNS = {"add": 1, "sub": -1}


def spread(x: Any, shape: tuple[int, ...]) -> Any:
    """Return values broadcast to a shape."""
    return x.gather(np.broadcast_to(np.arange(int(np.prod(x.shape))).reshape(x.shape), shape))


@compute.register
def _(layer: PQMerge, shape: tuple[int, ...], a: Any, b: Any) -> Any:
    if layer.kind in ("matmul", "einsum"):
        return _einsum(equation(layer, a.shape, b.shape), a, b)
    a, b = spread(a, shape), spread(b, shape)
    if layer.kind in SIGNS:
        return a.add(b, SIGNS[layer.kind])
    if layer.kind == "mul":
        return a.multiply(b)
    size = int(np.prod(shape))
    beside = np.arange(size).reshape(shape)
    return a.gather(np.stack((beside, beside + size), -1), b).extreme(layer.kind[:3])


def products_of(layer: PQMerge, a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Return the number of products in a merge of values of two shapes."""
    if layer.kind not in PRODUCTS:
        return 0
    if layer.kind == "mul":
        return int(np.prod(np.broadcast_shapes(a, b)))
    return int(np.prod(list(_sizes(equation(layer, a, b), a, b).values())))


def equation(layer: PQMerge, a: tuple[int, ...], b: tuple[int, ...]) -> tuple[str, str, str]:
    """Return the einsum letters of both factors and of the result, without the batch axis."""
    if layer.equation is None:
        lead = string.ascii_lowercase[: max(len(a), len(b)) - 2]
        first, second = (lead[len(lead) - max(len(shape) - 2, 0) :] for shape in (a, b))
        if len(a) == 1 or len(b) == 1:
            first, second = first + ("y" if len(a) == 1 else "xy"), second + ("y" if len(b) == 1 else "yz")
            return first, second, lead + ("x" if len(a) > 1 else "") + ("z" if len(b) > 1 else "")
        return first + "xy", second + "yz", lead + "xz"
    given, _, result = layer.equation.replace(" ", "").partition("->")
    first, _, second = given.partition(",")
    if "." in layer.equation or not result or len(first) - len(a) not in (0, 1) or len(second) - len(b) not in (0, 1):
        raise ConfigError(f"an einsum of {layer.equation} is not supported: name all axes, the batch first")
    cut = first[len(first) - len(a) :], second[len(second) - len(b) :]
    return *cut, "".join(letter for letter in result if letter in cut[0] + cut[1])


def _sizes(letters: tuple[str, str, str], a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for part, shape in zip(letters, (a, b), strict=False):
        for letter, size in zip(part, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    return sizes


def _einsum(letters: tuple[str, str, str], a: Any, b: Any) -> Any:
    first, second, result = letters
    if len(set(first)) < len(first) or len(set(second)) < len(second):
        raise ConfigError("an einsum over a diagonal is not supported")
    sizes = _sizes(letters, a.shape, b.shape)
    summed = "".join(letter for letter in dict.fromkeys(first + second) if letter not in result)
    every = result + summed

    def factor(part: str, x: Any) -> Any:
        index = np.arange(int(np.prod(x.shape))).reshape(x.shape)
        order = sorted(range(len(part)), key=lambda at: every.index(part[at]))
        index = index.transpose(order)
        present = [part[at] for at in order]
        whole = index.reshape([x.shape[part.index(letter)] if letter in present else 1 for letter in every])
        return x.gather(np.broadcast_to(whole, [sizes[letter] for letter in every]))

    product = factor(first, a).multiply(factor(second, b))
    shape = tuple(sizes[letter] for letter in result)
    return total(reshaped(product, (*shape, int(np.prod([sizes[letter] for letter in summed], dtype=np.int64))))) if summed else product


@compute.register
def _(layer: PQScale, shape: tuple[int, ...], x: Any) -> Any:
    return x.times(Constants.from_floats(layer.constant.detach().cpu().double().numpy()))


@compute.register
def _(layer: PQMean, shape: tuple[int, ...], x: Any) -> Any:
    ndim = len(x.shape) + 1
    dims = sorted(axis % ndim - 1 for axis in ((layer.dim,) if isinstance(layer.dim, int) else layer.dim))
    if dims[0] < 0:
        raise ConfigError("a mean over the batch is not supported")
    return reshaped(mean(_last(x, dims)), shape)


def _last(x: Any, dims: list[int]) -> Any:
    """Return values with some axes joined into one, the last."""
    index = np.moveaxis(np.arange(int(np.prod(x.shape))).reshape(x.shape), dims, range(-len(dims), 0))
    return x.gather(index.reshape(*index.shape[: len(x.shape) - len(dims)], -1))


def reduced(x: Any, kind: Any, dims: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    """Return the sums or extremes over some axes, in a shape."""
    last = _last(x, list(dims))
    return reshaped(total(last) if kind == "sum" else last.extreme(kind), shape)


@compute.register
def _(layer: PQSoftmax, shape: tuple[int, ...], x: Any) -> Any:
    axis = layer.dim % (len(shape) + 1) - 1
    if axis < 0:
        raise ConfigError("a softmax over the batch is not supported")
    scaled = x if layer.factor == 1 else x.times(Constants.from_floats(np.array(np.float32(layer.factor), np.float64)))
    scaled = quantized(scaled, layer.input_quantizer)
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    distance = spread(reduced(scaled, "max", (axis,), one), shape).add(scaled, -1)
    exponential = quantized(distance.real(in_float32(lambda values: torch.exp(-values))), layer.exponential_quantizer)
    sums = reduced(exponential, "sum", (axis,), one)
    inverse = quantized(sums.real(in_float32(reciprocal)), layer.reciprocal_quantizer)
    return exponential.multiply(spread(inverse, shape))


def _statistics(layer: Any, shape: tuple[int, ...], x: Any) -> Any:
    grouped, axes = layer.axes(torch.arange(int(np.prod(shape))).reshape(1, *shape))
    places = grouped[0].numpy()
    dims = sorted(axis % grouped.ndim - 1 for axis in axes)
    index = np.moveaxis(places, dims, range(-len(dims), 0))
    index = index.reshape(*index.shape[: index.ndim - len(dims)], -1)
    size = index.shape[-1]
    if size & (size - 1):
        raise ConfigError(f"a norm by the statistics of {size} values is not supported: their number must be a power of 2")
    values = x.gather(index)
    if layer.centres:
        values = values.add(spread(reshaped(mean(values), (*index.shape[:-1], 1)), index.shape), -1)
    variance = mean(values.multiply(values))
    eps = torch.finfo(torch.float32).eps if layer.eps is None else layer.eps
    inverse = variance.table(in_float32(lambda one: layer.reciprocal_quantizer(torch.rsqrt(one + eps))))
    values = values.multiply(spread(reshaped(inverse, (*index.shape[:-1], 1)), index.shape))
    back = np.empty(int(np.prod(shape)), np.int64)
    back[index.ravel()] = np.arange(len(back))
    y = values.gather(back.reshape(shape))
    for part in ("weight", "bias"):
        if getattr(layer, part, None) is not None:
            constants = parameters(layer, part)
            by_feature = layer.by_feature(torch.from_numpy(constants.n), torch.empty(1, *shape)).numpy()
            spread_constants = Constants(by_feature.reshape(by_feature.shape[max(by_feature.ndim - len(shape), 0) :]), constants.f)
            y = y.times(spread_constants) if part == "weight" else y.plus(spread_constants)
    return y


for kind in STATISTICS:
    compute.register(kind, _statistics)

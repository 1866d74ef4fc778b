"""Compute a recorded model with any kind of values that implements hardware arithmetic."""

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.export.fixed import Constants, Format, Real
from pquant.export.graph import Graph, LayerStep, MoveStep, Step, SumStep
from pquant.layers.activation import PQActivation
from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.layers.conv import PQConv1d, PQConv2d, PQConv3d
from pquant.layers.dense import PQDense
from pquant.layers.norm import ChannelAffine, PQBatchNorm1d, PQBatchNorm2d, PQBatchNorm3d
from pquant.layers.pool import PQAvgPool1d, PQAvgPool2d, PQAvgPool3d

CONVOLUTIONS = (PQConv1d, PQConv2d, PQConv3d)
NORMS = (PQBatchNorm1d, PQBatchNorm2d, PQBatchNorm3d)
POOLS = (PQAvgPool1d, PQAvgPool2d, PQAvgPool3d)
PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}


class Values(Protocol):
    """The values that a model is computed with; see :class:`pquant.export.fixed.Fixed`."""

    @property
    def shape(self) -> tuple[int, ...]: ...  # noqa: D102

    def gather(self, index: np.ndarray, *others: Any) -> Any: ...  # noqa: D102

    def dot(self, weight: Constants) -> Any: ...  # noqa: D102

    def times(self, factors: Constants) -> Any: ...  # noqa: D102

    def plus(self, terms: Constants) -> Any: ...  # noqa: D102

    def add(self, other: Any, sign: int = 1) -> Any: ...  # noqa: D102

    def shift(self, bits: int) -> Any: ...  # noqa: D102

    def quantize(self, form: Format) -> Any: ...  # noqa: D102

    def relu(self) -> Any: ...  # noqa: D102

    def clip(self, bound: int) -> Any: ...  # noqa: D102

    def real(self, function: Callable[[np.ndarray], np.ndarray]) -> Any: ...  # noqa: D102


def replay(graph: Graph, x: Any, callback: Callable[[Step, Any], None] = lambda step, value: None) -> list[Any]:
    """Return all values of a finalized model's graph, 0 being its input ``x``; ``callback`` gets each layer's result before its output quantizer.

    Raises:
        ConfigError: a layer that hardware cannot compute, named.
    """
    values = [x]
    for step in graph.steps:
        inputs = [values[at] for at in step.inputs]
        try:
            values.append(_call(step, inputs, callback))
        except ConfigError as error:
            raise error if str(error).startswith("export:") else ConfigError(f"export: layer '{step.name}': {error}") from error
    return values


def _call(step: Step, inputs: list[Any], callback: Callable[[Step, Any], None]) -> Any:
    if isinstance(step, MoveStep):
        return inputs[0].gather(step.index, *inputs[1:])
    if isinstance(step, SumStep):
        whole = [value.gather(np.broadcast_to(np.arange(math.prod(value.shape)).reshape(value.shape), step.shape)) for value in inputs]
        value = whole[0].add(whole[1], step.signs[1]) if len(whole) == 2 else whole[0].times(Constants(np.array(-1), 0))
        callback(step, value)
        return value
    assert isinstance(step, LayerStep) and isinstance(step.layer, QuantizedLayer)
    layer = step.layer
    value = compute(layer, quantized(inputs[0], layer.input_quantizer))
    callback(step, value)
    return quantized(value, layer.output_quantizer)


def quantized(value: Any, quantizer: Any) -> Any:
    """Return values after a finalized quantizer."""
    form = Format.of(quantizer)
    return value if form is None else value.quantize(form)


def compute(layer: nn.Module, x: Any) -> Any:
    """Return the result of a finalized layer for its quantized input, before its output quantizer."""
    if isinstance(layer, PQDense):
        return _dense(layer, x)
    if isinstance(layer, CONVOLUTIONS):
        return _convolution(layer, x)
    if isinstance(layer, ChannelAffine):
        factors, terms = (parameters(layer, which).reshape(-1, *(1,) * (len(x.shape) - 1)) for which in ("weight", "bias"))
        return x.times(factors).plus(terms)
    if isinstance(layer, POOLS):
        return _pool(layer, x)
    if isinstance(layer, PQActivation):
        return _activation(layer, x)
    raise ConfigError(f"{type(layer).__name__} is not supported")


def parameters(layer: Any, which: str) -> Constants:
    """Return a finalized layer's weight or bias as integers."""
    return Constants.of(f"{which} of layer '{layer.name}'", getattr(layer, which), getattr(layer, f"{which}_quantizer"))


def _dense(layer: PQDense, x: Any) -> Any:
    weight = parameters(layer, "weight")
    lead, inputs, outputs = x.shape[:-1], layer.in_features, layer.out_features
    y = _reshaped(x, (*lead, 1, inputs)).dot(Constants(weight.n.T[None], weight.f))
    return _biased(_reshaped(y, (*lead, outputs)), layer, (outputs,))


def _convolution(layer: Any, x: Any) -> Any:
    weight, groups = parameters(layer, "weight"), layer.groups
    patches = windows(x.shape, layer.kernel_size, layer.stride, padding(layer), layer.dilation, PADDING[layer.padding_mode])
    positions = patches.shape[1 : 1 + len(layer.kernel_size)]
    by_position = np.moveaxis(patches.reshape(groups, -1, *positions, math.prod(layer.kernel_size)), (0, 1), (-3, -2))
    kernel = weight.n.reshape(groups, layer.out_channels // groups, -1).swapaxes(1, 2)
    y = x.gather(by_position.reshape(*positions, groups, -1)).dot(Constants(kernel, weight.f))
    by_channel = np.moveaxis(np.arange(math.prod(y.shape)).reshape(*positions, -1), -1, 0)
    return _biased(y.gather(by_channel), layer, (-1, *(1,) * len(positions)))


def _biased(y: Any, layer: CompressedLayer, shape: tuple[int, ...]) -> Any:
    return y if layer.bias is None else y.plus(parameters(layer, "bias").reshape(*shape))


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    return x.gather(np.arange(math.prod(shape)).reshape(shape))


def _pool(layer: Any, x: Any) -> Any:
    kernel, stride, pads = pool_geometry(layer)
    patches = windows(x.shape, kernel, stride, [(pad, pad) for pad in pads], (1,) * len(kernel))
    size = math.prod(kernel)
    total = x.gather(patches.reshape(*patches.shape[: 1 + len(kernel)], 1, size)).dot(Constants(np.ones((1, size, 1), np.int64), 0))
    total = _reshaped(total, patches.shape[: 1 + len(kernel)])
    return total.shift(-(size.bit_length() - 1)) if size & (size - 1) == 0 else total.real(lambda values: values / size)


def pool_geometry(layer: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return (kernel, stride, padding), each a number an axis."""
    rank = POOLS.index(next(kind for kind in POOLS if isinstance(layer, kind))) + 1
    kernel, stride, pads = ((size,) * rank if isinstance(size, int) else tuple(size) for size in (layer.kernel_size, layer.stride, layer.padding))
    return kernel, stride, pads


def _activation(layer: PQActivation, x: Any) -> Any:
    if layer.kind == "tanh":
        return x.clip(1) if layer.hard else x.real(tanh)
    if layer.rectifies:
        return x
    return x.relu() if layer.multiplier is None else x.relu().shift(int(layer.multiplier))


def tanh(x: np.ndarray) -> np.ndarray:
    """Return torch's float32 tanh, as float64."""
    return torch.tanh(torch.from_numpy(x).float()).double().numpy()


def windows(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pads: list[tuple[int, int]],
    dilation: tuple[int, ...],
    mode: str = "constant",
) -> np.ndarray:
    """Return the places (channels, *positions, *kernel) of an array (channels, *sizes) that each position of a window covers; -1 is a padded zero."""
    constant: dict[str, Any] = {"constant_values": -1} if mode == "constant" else {}
    index = np.pad(np.arange(math.prod(shape)).reshape(shape), [(0, 0), *pads], mode=mode, **constant)  # type: ignore[call-overload]
    spans = [step * (size - 1) + 1 for step, size in zip(dilation, kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(index, spans, axis=tuple(range(1, len(shape))))
    return view[(slice(None), *(slice(None, None, step) for step in stride), *(slice(None, None, step) for step in dilation))]


def padding(layer: Any) -> list[tuple[int, int]]:
    """Return a convolution's (before, after) an axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(pad, pad) for pad in layer.padding]


def input_format(graph: Graph) -> Format:
    """Return the format that the model's input has once quantized, in the input's own shape; values that nothing uses have no bits.

    Raises:
        ConfigError: an input that is used unquantized, or in several formats.
    """
    places: dict[int, np.ndarray] = {0: np.arange(math.prod(graph.input_shape)).reshape(graph.input_shape)}
    bits = np.full((3, math.prod(graph.input_shape)), np.nan)
    modes: dict[tuple[str, str], str] = {}
    for at, step in enumerate(graph.steps, 1):
        if not places.keys() & set(step.inputs):
            continue
        if isinstance(step, MoveStep) and len(step.inputs) == 1:
            places[at] = _gather_places(places[step.inputs[0]], step.index)
            continue
        form = Format.of(step.layer.input_quantizer) if isinstance(step, LayerStep) else None  # type: ignore[arg-type]
        if form is None:
            raise ConfigError(f"export: '{step.name}' uses the model's input without quantizing it")
        modes.setdefault((form.round_mode, form.overflow_mode), step.name)
        index = places[step.inputs[0]]
        form = form.expand(index.shape)
        new = np.stack([form.k, form.i, form.f])[:, index >= 0]
        old = bits[:, index[index >= 0]]
        if len(modes) > 1 or not (np.isnan(old) | (old == new)).all():
            raise ConfigError(f"export: '{step.name}' quantizes the model's input in another format than the layers before it")
        bits[:, index[index >= 0]] = new
    if not modes:
        raise ConfigError("export: no layer quantizes the model's input")
    k, i, f = np.nan_to_num(bits).astype(np.int64).reshape(3, *graph.input_shape)
    return Format(k, i, f, *next(iter(modes)))


def _gather_places(places: np.ndarray, index: np.ndarray) -> np.ndarray:
    return np.where(index < 0, -1, places.ravel()[index])


def quantized_input(graph: Graph, x: np.ndarray) -> Any:
    """Return float64 examples (batch, *input shape) as the hardware gets them."""
    return Real(x).quantize(input_format(graph))

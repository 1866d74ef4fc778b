"""Conversion of steps that are layers to hls4ml's layers."""

import math
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.arithmetic import compute, parameters
from pquant.export.fixed import Fixed
from pquant.export.formats import Constants, Format
from pquant.export.graph import LayerStep
from pquant.export.hls4ml import precision
from pquant.export.hls4ml.elements import affine, scaled, table
from pquant.export.hls4ml.layout import channels_last, torch_order
from pquant.export.hls4ml.merges import lower_mean, lower_scale, lower_softmax, rectified
from pquant.export.hls4ml.moves import pads, sizes
from pquant.export.hls4ml.pools import lower_pool
from pquant.export.hls4ml.project import Project, Value
from pquant.export.windows import padding
from pquant.layers.activation import PQActivation
from pquant.layers.conv import PQConv1d, PQConv2d
from pquant.layers.dense import PQDense
from pquant.layers.merge import PQMean, PQScale
from pquant.layers.norm import ChannelAffine
from pquant.layers.pool import PQAvgPool1d, PQAvgPool2d, PQMaxPool1d, PQMaxPool2d
from pquant.layers.softmax import PQSoftmax

CONVOLUTIONS = (PQConv1d, PQConv2d)
AVERAGES = (PQAvgPool1d, PQAvgPool2d)
MAXIMA = (PQMaxPool1d, PQMaxPool2d)
ONE, MINUS = Constants(np.array(1), 0), Constants(np.array(-1), 0)
BY_POSITION = (*CONVOLUTIONS, *AVERAGES, *MAXIMA, ChannelAffine)


def lower_layer(project: Project, step: LayerStep, value: Value, form: Format | None, guard: int) -> Value:
    """Return the result of a layer for its quantized input.

    Args:
        project: the project that the layer is added to.
        step: the layer.
        value: its quantized input.
        form: the format to which all readers of the result quantize it, if they agree.
        guard: the largest number of fractional bits of any format in the model.

    Raises:
        ConfigError: hls4ml has no such layer, or does not compute it bit-exactly.
    """
    layer: Any = step.layer
    if isinstance(layer, PQActivation):
        return _activation(project, step, value, form)
    if isinstance(layer, PQScale):
        return lower_scale(project, step, value)
    if isinstance(layer, PQMean):
        return lower_mean(project, step, value, guard)
    if isinstance(layer, PQSoftmax):
        return lower_softmax(project, step, value)
    if isinstance(layer, PQDense):
        return _dense(project, step, value)
    if isinstance(layer, CONVOLUTIONS):
        return _convolution(project, step, value)
    if isinstance(layer, (*AVERAGES, *MAXIMA)):
        return lower_pool(project, step.name, value, layer, compute(layer, step.shape, value.bounds), isinstance(layer, AVERAGES), guard)
    if isinstance(layer, ChannelAffine):
        value = _by_channel(project, step, value)
        ones = (1,) * (len(value.bounds.shape) - 1)
        return affine(project, step.name, value, *(parameters(layer, part).reshape(-1, *ones) for part in ("weight", "bias")))
    raise ConfigError(f"hls4ml has no layer for a {type(layer).__name__}")


def _by_channel(project: Project, step: LayerStep, value: Value) -> Value:
    shape = value.bounds.shape
    return value if len(shape) == 1 and value.order.ndim == 1 else project.arrange(step.name, value, channels_last(shape))


def _weighted(layer: Any, weight: np.ndarray, bounds: Fixed) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the weights (output channel last) and bias of a layer, and all its types."""
    bias = parameters(layer, "bias") if layer.bias is not None else Constants(np.zeros(weight.shape[-1], np.int64), 0)
    types = {"weight": precision.of_constants(Constants.from_floats(weight)), "bias": precision.of_constants(bias)}
    types |= {"accum": precision.of_sum(bounds), "result": precision.of_values(bounds)}
    return {"weight_data": weight, "bias_data": bias.floats, "use_bias": True}, types


def _dense(project: Project, step: LayerStep, value: Value) -> Value:
    layer: Any = step.layer
    bounds = compute(layer, step.shape, value.bounds)
    weight = parameters(layer, "weight").floats.T
    if len(step.shape) == 1:
        weight = weight[value.order.ravel()]
        value = project.reshape(step.name, value, value.order.ravel())
        data, types = _weighted(layer, weight, bounds)
        made = Value("", torch_order(step.shape), bounds, castable=True)
        return project.add("Dense", step.name, [value], made, types, n_in=layer.in_features, n_out=layer.out_features, **data)
    positions = math.prod(step.shape[:-1])
    value = project.arrange(step.name, value, torch_order(value.bounds.shape).reshape(positions, -1))
    data, types = _weighted(layer, weight[None], bounds)
    made = Value("", torch_order(step.shape).reshape(positions, -1), bounds, castable=True)
    shape = {"in_width": positions, "out_width": positions, "n_chan": layer.in_features, "n_filt": layer.out_features}
    kernel = {"filt_width": 1, "stride_width": 1, "pad_left": 0, "pad_right": 0}
    return project.add("Conv1D", step.name, [value], made, types, **shape, **kernel, **data)


def _convolution(project: Project, step: LayerStep, value: Value) -> Value:
    layer: Any = step.layer
    if layer.padding_mode != "zeros":
        raise ConfigError(f"hls4ml pads with zeros only, not with padding_mode '{layer.padding_mode}'")
    if (layer.groups > 1 or max(layer.dilation) > 1) and (layer.name in project.target.resource or project.target.backend == "Quartus"):
        raise ConfigError("groups and dilation become zero weights, which cost nothing with strategy=latency only")
    value = project.arrange(step.name, value, channels_last(value.bounds.shape))
    bounds = compute(layer, step.shape, value.bounds)
    data, types = _weighted(layer, _full_kernel(layer), bounds)
    made = Value("", channels_last(step.shape), bounds, castable=True)
    rank = len(step.shape)
    kernel = [step * (size - 1) + 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    geometry = sizes(rank, {"in": value.order.shape, "out": made.order.shape, "filt": kernel, "stride": layer.stride}) | pads(rank, padding(layer))
    return project.add(
        f"Conv{rank - 1}D", step.name, [value], made, types, n_chan=value.order.shape[-1], n_filt=layer.out_channels, **geometry, **data
    )


def _full_kernel(layer: Any) -> np.ndarray:
    """Return the weight as (*kernel, inputs, outputs), with zeros at places that groups and dilation leave out."""
    weight = parameters(layer, "weight").floats
    outputs, inputs, groups = layer.out_channels, layer.in_channels // layer.groups, layer.groups
    kernel = [step * (size - 1) + 1 for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
    full = np.zeros((outputs, layer.in_channels, *kernel))
    spots = tuple(slice(None, None, step) for step in layer.dilation)
    for group, rows in enumerate(np.split(np.arange(outputs), groups)):
        full[(slice(rows[0], rows[-1] + 1), slice(group * inputs, (group + 1) * inputs), *spots)] = weight[rows]
    return np.moveaxis(full, (0, 1), (-1, -2))


def _activation(project: Project, step: LayerStep, value: Value, form: Format | None) -> Value:
    layer: Any = step.layer
    if layer.rectifies:
        return value
    if layer.kind == "relu":
        value = rectified(project, step.name, value)
        shift = 0 if layer.multiplier is None else int(layer.multiplier)
        return scaled(project, step.name, value, 2.0**shift) if shift else value
    if layer.kind == "tanh" and layer.hard:
        return _clipped(project, step.name, value)
    if any(parameter.numel() > 1 for parameter in layer.parameters(recurse=False)):
        raise ConfigError("hls4ml has one table for all values, but the function differs by channel")
    return table(project, step.name, value, lambda x: compute(layer, x.shape, x), form)


def _clipped(project: Project, name: str, value: Value) -> Value:
    """Return the value, at least -1 and at most 1."""
    if project.target.backend == "Catapult":  # its hard_tanh does not clip
        upper = Constants(np.array(2), 0)
        value = rectified(project, name, affine(project, name, value, ONE, ONE))
        value = rectified(project, name, affine(project, name, value, MINUS, upper))
        return affine(project, name, value, MINUS, ONE)
    bounds = value.bounds.clip(1)
    made = Value("", value.order, bounds, castable=True)
    types = {"result": precision.of_values(bounds)}
    half = {"slope": 0.5, "shift": 0.5}
    return project.add("HardActivation", name, [value], made, types, activation="hard_tanh", n_in=value.order.size, **half)

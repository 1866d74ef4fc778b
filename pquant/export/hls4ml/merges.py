"""Conversion of steps that join or reduce values, or consist of several tables."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pquant.errors import ConfigError
from pquant.export.arithmetic import compute, in_float32
from pquant.export.formats import Constants, Format
from pquant.export.graph import LayerStep, MoveStep, ReduceStep, SumStep
from pquant.export.hls4ml import precision
from pquant.export.hls4ml.elements import affine, extreme, merged, scaled, select, spread_index, table, total
from pquant.export.hls4ml.layout import torch_order
from pquant.export.hls4ml.moves import lower_move
from pquant.export.hls4ml.pools import lower_pool
from pquant.export.hls4ml.project import Project, Value
from pquant.export.products import equation, spread
from pquant.layers.merge import PQMean, PQMerge, PQScale
from pquant.layers.softmax import PQSoftmax, reciprocal

OPERATIONS = {"add": "add", "sub": "subtract", "mul": "multiply", "maximum": "maximum", "minimum": "minimum"}


def lower_sum(project: Project, step: SumStep, inputs: list[Value]) -> Value:
    """Return the sum, difference or negative."""
    if len(inputs) == 1:
        return scaled(project, step.name, inputs[0], -1.0)
    if step.signs[0] < 0:
        inputs = inputs[::-1]
    return _joined(project, step.name, inputs, "sub" if -1 in step.signs else "add", step.shape)


def _joined(project: Project, name: str, inputs: list[Value], kind: str, shape: tuple[int, ...]) -> Value:
    """Return a function of two values that broadcast; either may be constant."""
    first, second = inputs
    a, b = (spread(value.bounds, shape) for value in inputs)
    if kind in ("maximum", "minimum"):
        beside = np.arange(int(np.prod(shape))).reshape(shape)
        bounds = a.gather(np.stack((beside, beside + beside.size), -1), b).extreme(kind[:3])
    else:
        bounds = a.multiply(b) if kind == "mul" else a.add(b, -1 if kind == "sub" else 1)
    constant = first.constants if first.constants is not None else second.constants
    if constant is None or kind in ("maximum", "minimum"):
        return merged(project, name, inputs, OPERATIONS[kind], bounds)
    value = second if first.constants is not None else first
    if value.bounds.shape != shape:
        value = select(project, name, value, spread_index(value.bounds.shape, shape))
    if kind == "mul":
        return affine(project, name, value, constant, Constants(np.zeros((), np.int64), 0))
    signs = (-1 if kind == "sub" and first.constants is not None else 1, -1 if kind == "sub" and first.constants is None else 1)
    return affine(project, name, value, Constants(np.array(signs[0]), 0), Constants(constant.n * signs[1], constant.f))


def lower_reduction(project: Project, step: ReduceStep, value: Value) -> Value:
    """Return sums or extremes over axes."""
    if step.kind == "sum":
        return total(project, step.name, value, step.dims, step.shape)
    return extreme(project, step.name, value, step.kind, step.dims, step.shape)


def lower_pair(project: Project, name: str, inputs: list[Value], kind: str, index: np.ndarray) -> Value | None:
    """Return the larger or smaller of two values, or of one value and 0, as in torch.maximum and relu; None if ``index`` differs."""
    shape = index.shape[:-1]
    if len(inputs) == 1:
        relu = kind == "max" and index.shape[-1] == 2 and (index[..., 1] == -1).all() and np.array_equal(index[..., 0], torch_order(shape))
        return rectified(project, name, inputs[0]) if relu else None
    start = int(np.prod(inputs[0].bounds.shape))
    if len(inputs) > 2 or index.shape[-1] != 2 or any(not _broadcasts(value.bounds.shape, shape) for value in inputs):
        return None
    places = [spread_index(value.bounds.shape, shape) + offset for value, offset in zip(inputs, (0, start), strict=True)]
    if any(not np.array_equal(index[..., at], place) for at, place in enumerate(places)):
        return None
    return _joined(project, name, inputs, f"{kind}imum", shape)


def _broadcasts(shape: tuple[int, ...], wider: tuple[int, ...]) -> bool:
    return len(shape) <= len(wider) and all(size in (1, wide) for size, wide in zip(shape[::-1], wider[::-1], strict=False))


def rectified(project: Project, name: str, value: Value) -> Value:
    """Return the value, 0 for negative ones."""
    bounds = value.bounds.relu()
    made = Value("", value.order, bounds, castable=True)
    return project.add("Activation", name, [value], made, {"result": precision.of_values(bounds)}, activation="relu", n_in=value.order.size)


def lower_merge(project: Project, step: LayerStep, inputs: list[Value]) -> Value:
    """Return the result of a PQMerge.

    Raises:
        ConfigError: a product of matrices that hls4ml has no layer for.
    """
    layer: Any = step.layer
    assert isinstance(layer, PQMerge)
    if layer.kind in OPERATIONS:
        return _joined(project, step.name, inputs, layer.kind, step.shape)
    if project.target.stream or not project.target.amd or step.name in project.target.resource:
        raise ConfigError("hls4ml multiplies data with data for Vitis and Vivado only, with io_type=parallel and strategy=latency")
    first, second = (project.arrange(step.name, value, torch_order(value.bounds.shape)) for value in inputs)
    letters = equation(layer, first.bounds.shape, second.bounds.shape)
    bounds = compute(layer, step.shape, first.bounds, second.bounds)
    made = Value("", torch_order(step.shape), bounds, castable=True)
    types = {"accum": precision.of_sum(bounds), "result": precision.of_values(bounds)}
    shapes = {"inp0_shape": first.bounds.shape, "inp1_shape": second.bounds.shape, "out_shape": step.shape}
    return project.add("Einsum", step.name, [first, second], made, types, equation="{},{}->{}".format(*letters), **shapes)


def lower_scale(project: Project, step: LayerStep, value: Value) -> Value:
    """Return the product with the constant of a PQScale."""
    layer: Any = step.layer
    assert isinstance(layer, PQScale)
    return scaled(project, step.name, value, float(layer.constant))


def lower_mean(project: Project, step: LayerStep, value: Value, guard: int) -> Value:
    """Return means over axes: a sum and a shift, or the average over a window."""
    layer: Any = step.layer
    assert isinstance(layer, PQMean)
    given = layer.dim if isinstance(layer.dim, (tuple, list)) else (layer.dim,)
    dims = tuple(sorted(axis % (len(value.bounds.shape) + 1) - 1 for axis in given))
    count = int(np.prod([value.bounds.shape[axis] for axis in dims]))
    if count.bit_count() == 1:
        return total(project, step.name, value, dims, step.shape, 1 - count.bit_length())
    index = np.moveaxis(torch_order(value.bounds.shape), dims, range(-len(dims), 0)).reshape(-1, count)
    value = lower_move(project, MoveStep(step.name, (), index.shape, index, (index.size,)), [value])
    pool = SimpleNamespace(kernel_size=count, stride=count, padding=0)
    means = value.bounds.real(lambda values: values).gather(np.arange(len(index))[:, None])
    averages = lower_pool(project, step.name, value, pool, means, True, guard)
    places = torch_order(step.shape)
    return lower_move(project, MoveStep(step.name, (), places.shape, places, (places.size,)), [averages])


def lower_softmax(project: Project, step: LayerStep, value: Value) -> Value:
    """Return a softmax: a table of exponentials of the differences from the largest value, and a table of reciprocals of their sum."""
    layer: Any = step.layer
    assert isinstance(layer, PQSoftmax)
    name, shape = step.name, step.shape
    axis = layer.dim % (len(shape) + 1) - 1
    if layer.factor != 1:
        value = scaled(project, name, value, float(np.float32(layer.factor)))
    value = project.cast(name, value, Format.of(layer.input_quantizer))
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    value = project.arrange(name, value, torch_order(shape))
    largest = extreme(project, name, value, "max", (axis,), one)
    distance = _joined(project, name, [largest, value], "sub", shape)
    exponential = _tabled(project, name, distance, lambda values: torch.exp(-values), layer.exponential_quantizer)
    sums = total(project, name, exponential, (axis,), one)
    inverse = _tabled(project, name, sums, reciprocal, layer.reciprocal_quantizer)
    return _joined(project, name, [exponential, inverse], "mul", shape)


def _tabled(project: Project, name: str, value: Value, function: Any, quantizer: Any) -> Value:
    form = Format.of(quantizer)
    wide = None if form is None else form.expand(value.bounds.shape)
    made = table(project, name, value, lambda x: x.real(in_float32(function)), wide)
    return project.cast(name, replace(made, castable=False), form)

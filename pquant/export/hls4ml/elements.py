"""The elements of steps: products with constants, tables, selections, sums and extremes."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from pquant.errors import ConfigError
from pquant.export.fixed import Fixed
from pquant.export.formats import Constants, Format
from pquant.export.hls4ml import precision
from pquant.export.hls4ml.layout import Order, channels_last, same, torch_order
from pquant.export.hls4ml.project import Project, Value
from pquant.export.products import reduced

LARGEST_TABLE = 16
LARGEST_SELECTION = 2**16
WIDEST_ENTRY = 60
NOTHING = Constants(np.zeros((), np.int64), 0)


def scaled(project: Project, name: str, value: Value, factor: float) -> Value:
    """Return the value times a constant."""
    return affine(project, name, value, Constants.from_floats(np.array(factor)), NOTHING)


def affine(project: Project, name: str, value: Value, scale: Constants, shift: Constants) -> Value:
    """Return value * scale + shift, with constants that broadcast in torch's shape.

    Raises:
        ConfigError: in a stream, constants that differ by position.
    """
    bounds = value.bounds.times(scale).plus(shift)
    last = value.order.shape[-1]
    factors, terms = (np.broadcast_to(part.floats, value.bounds.shape).ravel()[value.order].reshape(-1, last) for part in (scale, shift))
    by_channel = all((part == part[0]).all() for part in (factors, terms))
    if not by_channel and project.target.stream and value.order.ndim > 1:
        raise ConfigError("constants differ by position, which hls4ml takes with io_type=parallel only")
    types = {"scale": precision.of_constants(scale), "bias": precision.of_constants(shift), "result": precision.of_values(bounds)}
    made = Value("", value.order, bounds, castable=True)
    shared = by_channel and value.order.ndim > 1
    data = {"scale_data": factors[0] if shared else factors.ravel(), "bias_data": terms[0] if shared else terms.ravel()}
    sizes = {"n_in": value.order.size, "n_filt": last if shared else -1}
    return project.add("BatchNormalization", name, [value], made, types, **sizes, **data, use_gamma=True, use_beta=True)


def merged(project: Project, name: str, inputs: list[Value], operation: str, bounds: Any) -> Value:
    """Return a function of two values of one shape; the values broadcast to that of ``bounds``."""
    shape = bounds.shape
    if operation in ("maximum", "minimum") and project.target.stream and project.target.backend == "Catapult":
        raise ConfigError("hls4ml takes no maximum or minimum of two values in a stream for Catapult")
    base = next((value for value in inputs if value.bounds.shape == shape), None)
    order = torch_order(shape) if base is None else base.order
    first, second = (repeated(project, name, value, order, shape) for value in inputs)
    if first.layer == second.layer:
        copied = {"result": project.type_of(second)}
        second = project.add("Activation", name, [second], second, copied, activation="linear", n_in=second.order.size)
    made = Value("", first.order, bounds, castable=True)
    return project.add("Merge", name, [first, second], made, {"result": precision.of_values(bounds)}, op=operation)


def repeated(project: Project, name: str, value: Value, order: Order, shape: tuple[int, ...]) -> Value:
    """Return a value broadcast to a shape, in an order of that shape."""
    if value.bounds.shape != shape:
        value = select(project, name, value, spread_index(value.bounds.shape, shape), order)
    return project.arrange(name, value, order)


def spread_index(shape: tuple[int, ...], wider: tuple[int, ...]) -> np.ndarray:
    """Return, for each place of the ``wider`` shape, the place of the value that is broadcast to it."""
    return np.broadcast_to(np.arange(math.prod(shape)).reshape(shape), wider)


def select(project: Project, name: str, value: Value, index: np.ndarray, order: Order | None = None) -> Value:
    """Return the values at ``index``, where -1 stands for a zero, by products with 0 and 1, which cost no logic unless multipliers are shared.

    Args:
        project: the project.
        name: name of the step.
        value: the values.
        index: places in torch's order.
        order: order of the result; by default that of the input.

    Raises:
        ConfigError: too many values, or a backend that shares all multipliers.
    """
    if project.target.backend in ("Quartus", "oneAPI"):
        raise ConfigError("hls4ml has no layer that selects or repeats values, and products with 0 and 1 are shared for this backend")
    if value.order.size * index.size > LARGEST_SELECTION:
        raise ConfigError(f"hls4ml has no layer that selects or repeats values, and {value.order.size} x {index.size} products with 0 and 1 are many")
    matrix = (np.arange(value.order.size)[:, None] == index.ravel()[None]).astype(np.float64)
    made = _combined(project, name, value, matrix, value.bounds.gather(index))
    project.moving.add(made.layer)
    if order is None:
        last = value.order.ndim > 1 and index.ndim > 1 and same(value.order, channels_last(value.bounds.shape))
        order = channels_last(index.shape) if last else torch_order(index.shape)
    return shaped(project, name, made, order)


def total(project: Project, name: str, value: Value, dims: tuple[int, ...], shape: tuple[int, ...], shift: int = 0) -> Value:
    """Return sums over axes, counted without the batch axis, times 2^shift; ``shape`` is the shape of the result in torch."""
    bounds = reduced(value.bounds, "sum", dims, shape).shift(shift)
    ends = _reduced_places(value.bounds.shape, dims)
    matrix = (ends.ravel()[:, None] == np.arange(math.prod(shape))[None]) * 2.0**shift
    return shaped(project, name, _combined(project, name, value, matrix, bounds), torch_order(shape))


def _reduced_places(shape: tuple[int, ...], dims: tuple[int, ...]) -> np.ndarray:
    """Return, for each value, the place of the sum that it is added to."""
    kept = tuple(1 if axis in dims else size for axis, size in enumerate(shape))
    return spread_index(kept, shape)


def _combined(project: Project, name: str, value: Value, matrix: np.ndarray, bounds: Fixed) -> Value:
    """Return flat products with a matrix (inputs, outputs), both in torch's order."""
    constants = Constants.from_floats(matrix)
    types = {"weight": precision.of_constants(constants), "bias": precision.of_constants(NOTHING)}
    types |= {"accum": precision.of_sum(bounds), "result": precision.of_values(bounds)}
    flat = project.reshape(name, value, value.order.ravel())
    data = {"weight_data": matrix[flat.order], "bias_data": np.zeros(matrix.shape[1]), "use_bias": True}
    made = Value("", np.arange(matrix.shape[1]), bounds, castable=True)
    return project.add("Dense", name, [flat], made, types, n_in=matrix.shape[0], n_out=matrix.shape[1], **data)


def shaped(project: Project, name: str, value: Value, order: Order) -> Value:
    """Return flat values of a layer, which may compute them in any order, in a given order."""
    if same(value.order, order):
        return replace(project.reshape(name, value, order))
    layer = next(layer for layer in project.layers if layer["name"] == value.layer)
    layer["weight_data"] = layer["weight_data"][:, order.ravel()]
    return project.reshape(name, replace(value, order=order.ravel()), order)


def extreme(project: Project, name: str, value: Value, kind: Literal["max", "min"], dims: tuple[int, ...], shape: tuple[int, ...]) -> Value:
    """Return the largest or smallest values over axes, in a given shape of torch."""
    if kind == "min":
        value = extreme(project, name, scaled(project, name, value, -1.0), "max", dims, shape)
        return scaled(project, name, value, -1.0)
    bounds = reduced(value.bounds, "max", dims, shape)
    places = torch_order(value.bounds.shape)
    value = project.arrange(name, value, np.moveaxis(places, dims, range(len(dims))))
    count = value.order.size // math.prod(shape)
    value = project.reshape(name, value, value.order.reshape(count, -1))
    channels = value.order.shape[-1]
    types = {"result": precision.of_values(bounds), "accum": precision.of_values(value.bounds)}
    made = Value("", torch_order(shape).reshape(1, channels), bounds, castable=True)
    sizes = {"n_in": count, "n_out": 1, "n_filt": channels, "pool_width": count, "stride_width": count, "pad_left": 0, "pad_right": 0}
    made = project.add("MaxPooling1D", name, [value], made, types, pool_op="Max", count_pad=True, **sizes)
    return project.reshape(name, made, torch_order(shape))


def table(project: Project, name: str, value: Value, function: Callable[[Any], Any], form: Format | None) -> Value:
    """Return a function of one value, computed by a table with an entry for each code of the input's type.

    Args:
        project: the project.
        name: name of the step.
        value: input of the table.
        function: function of fixed-point values.
        form: the format of the results, if it is known.

    Raises:
        ConfigError: a table that is too large, or a backend without tables.
    """
    if not project.target.amd:
        raise ConfigError("hls4ml has tables of any function for Vitis and Vivado only")
    signed, width, integer = precision.parsed(project.type_of(value))
    if width > LARGEST_TABLE:
        raise ConfigError(f"a table of 2^{width} entries is needed, more than 2^{LARGEST_TABLE}: quantize its input to fewer bits")
    codes = np.arange(2**width)
    codes = np.where(codes >= 2 ** (width - 1), codes - 2**width, codes) if signed else codes
    bounds = function(value.bounds)
    entries = function(Fixed(codes[None], width - integer, codes, codes))
    if form is not None and precision.uniform(form) is None:
        form = None
    if form is not None:
        k, i, f = (np.unique(bits) for bits in (form.k, form.i, form.f))
        scalar = Format(k, i, f, form.round_mode, form.overflow_mode)
        bounds, entries = bounds.quantize(form), entries.quantize(scalar)
    constants = Constants.from_floats(entries.floats()[0])
    if constants.f > WIDEST_ENTRY:
        raise ConfigError("its table is too wide: quantize its output, in one format")
    made = Value("", value.order, bounds, None if form is None else form.expand(bounds.shape))
    types = {"result": precision.of_constants(constants), "table": precision.of_constants(constants)}
    return project.add("UnaryLUT", name, [value], made, types, n_in=value.order.size, table_data=constants.floats, activation="unary_lut")

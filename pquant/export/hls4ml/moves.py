"""Steps that move or add values: reorderings cost nothing until a layer needs another order than there is."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.fixed import Constants, Format
from pquant.export.graph import MoveStep, SumStep
from pquant.export.hls4ml.layout import Order, channels_last, same, torch_order
from pquant.export.hls4ml.precision import of_constants
from pquant.export.hls4ml.project import Project, Value, result_type

SIDES = {2: (("left", "right"),), 3: (("top", "bottom"), ("left", "right"))}
SIZES = {2: ("width",), 3: ("height", "width")}
LARGEST_CONCATENATION = 3


def lower_move(project: Project, step: MoveStep, inputs: list[Value]) -> Value:
    """Return the moved values.

    Raises:
        ConfigError: a selection, repetition or padding that hls4ml has no layer for.
    """
    given = [value.bounds for value in inputs]
    bounds = given[0].gather(step.index, *given[1:])
    form = _gathered([value.form for value in inputs], step)
    if np.array_equal(np.sort(step.index, axis=None), np.arange(sum(step.sizes))):
        whole = inputs[0] if len(inputs) == 1 else _concatenated(project, step, inputs)
        order = np.argsort(step.index.ravel())[whole.order]
        return replace(whole, order=order, bounds=bounds, form=form)
    if len(inputs) == 1 and len(step.shape) in SIDES:
        found = _padded(project, step, inputs[0])
        if found is not None:
            return replace(found, bounds=bounds, form=form)
    raise ConfigError("hls4ml has no layer that selects or repeats values")


def _concatenated(project: Project, step: MoveStep, inputs: list[Value]) -> Value:
    """Return all inputs after one another; its order holds places in the concatenation of the inputs in torch's order."""
    starts = np.cumsum([0, *step.sizes])
    orders = [value.order + start for value, start in zip(inputs, starts, strict=False)]
    axes = [axis for axis in reversed(range(orders[0].ndim)) if len({_without(order.shape, axis) for order in orders}) == 1]
    if not axes or orders[0].ndim > LARGEST_CONCATENATION:
        raise ConfigError(f"hls4ml cannot concatenate values of the shapes {', '.join(str(order.shape) for order in orders)}")
    place = np.argsort(step.index.ravel())
    axis = next((axis for axis in axes if _natural(place[np.concatenate(orders, axis)], step.shape)), axes[0])
    whole = inputs[0]
    for number, other in enumerate(inputs[1:], 2):
        bounds = _joined(whole.bounds, other.bounds)
        value = Value("", np.concatenate(orders[:number], axis), bounds, castable=True)
        kind = f"concatenate{orders[0].ndim}d"
        whole = project.add("Concatenate", step.name, [whole, other], value, {"result": result_type(bounds)}, axis=axis + 1, op=kind)
    return whole


def _natural(order: Order, shape: tuple[int, ...]) -> bool:
    return same(order, torch_order(shape)) or same(order, channels_last(shape))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :] if axis < len(shape) else (-1,)


def _joined(first: Any, second: Any) -> Any:
    sizes = [int(np.prod(value.shape)) for value in (first, second)]
    return first.gather(np.arange(sum(sizes)), second)


def _gathered(forms: list[Format | None], step: MoveStep) -> Format | None:
    """Return the format of moved values; of padded zeros, one of no bits."""
    if any(form is None for form in forms) or len({form.overflow_mode for form in forms if form}) > 1:
        return None
    known = [form for form in forms if form is not None]
    parts = (np.concatenate([*(getattr(form, part).ravel() for form in known), [0]]) for part in "kif")
    return Format(*(part[step.index] for part in parts), known[0].round_mode, known[0].overflow_mode)


def _padded(project: Project, step: MoveStep, value: Value) -> Value | None:
    """Return the value with zeros around its positions, or None if the step is something else."""
    order = channels_last(step.shape)
    source = step.index.ravel()[order]
    inside = np.argwhere(source >= 0)
    before = inside.min(0) if len(inside) else np.zeros(source.ndim, int)
    window = tuple(slice(first, last + 1) for first, last in zip(before, inside.max(0) if len(inside) else before, strict=True))
    found = source[window]
    if found.size != value.order.size or not same(value.order, found) or found.shape[-1] != source.shape[-1]:
        return None
    value = project.reshape(step.name, value, value.order.reshape(found.shape))
    after = np.array(source.shape) - before - found.shape
    rank = source.ndim
    geometry = sizes(rank, {"in": found.shape, "out": source.shape}) | pads(rank, list(zip(before.tolist(), after.tolist(), strict=True)))
    types = {"result": project.types[value.layer]["result"].partition(",RND")[0]}
    result = replace(value, order=order, castable=False)
    return project.add(f"ZeroPadding{source.ndim - 1}D", step.name, [value], result, types, n_chan=source.shape[-1], **geometry)


def sizes(rank: int, shapes: dict[str, Sequence[int]]) -> dict[str, int]:
    """Return hls4ml's names of sizes by position, for each given name."""
    return {f"{which}_{name}": int(size) for which, shape in shapes.items() for name, size in zip(SIZES[rank], shape, strict=False)}


def pads(rank: int, by_axis: list[tuple[int, int]]) -> dict[str, int]:
    """Return hls4ml's names of the zeros before and after each axis of positions."""
    return {f"pad_{name}": int(pad) for names, both in zip(SIDES[rank], by_axis, strict=False) for name, pad in zip(names, both, strict=True)}


def lower_sum(project: Project, step: SumStep, inputs: list[Value]) -> Value:
    """Return the sum, difference or negative.

    Raises:
        ConfigError: inputs of several shapes, or one value added to itself by a stream.
    """
    if len(inputs) == 1:
        return scaled(project, step.name, inputs[0], -1.0)
    first, second = inputs
    if first.bounds.shape != second.bounds.shape:
        raise ConfigError(f"hls4ml adds no values of different shapes, {first.bounds.shape} and {second.bounds.shape}")
    if first.layer == second.layer:
        return scaled(project, step.name, first, 1.0 + step.signs[1])
    second = project.arrange(step.name, second, first.order)
    bounds = first.bounds.add(second.bounds, step.signs[1])
    value = Value("", first.order, bounds, castable=True)
    return project.add("Merge", step.name, [first, second], value, {"result": result_type(bounds)}, op="add" if step.signs[1] > 0 else "subtract")


def scaled(project: Project, name: str, value: Value, factor: float) -> Value:
    """Return the value times a constant."""
    constant = Constants.from_floats(np.array(factor))
    return affine(project, name, value, constant, Constants(np.zeros((), np.int64), 0))


def affine(project: Project, name: str, value: Value, scale: Constants, shift: Constants) -> Value:
    """Return value * scale + shift; the constants broadcast in torch's shape and are the same at each place of hls4ml's last axis."""
    bounds = value.bounds.times(scale).plus(shift)
    last = value.order.shape[-1]
    factors, terms = (np.broadcast_to(part.floats, value.bounds.shape).ravel()[value.order].reshape(-1, last)[0] for part in (scale, shift))
    types = {"scale": of_constants(scale), "bias": of_constants(shift), "result": result_type(bounds)}
    made = Value("", value.order, bounds, castable=True)
    n_filt = -1 if value.order.ndim == 1 else last
    data = {"scale_data": factors, "bias_data": terms, "use_gamma": True, "use_beta": True}
    return project.add("BatchNormalization", name, [value], made, types, n_in=value.order.size, n_filt=n_filt, **data)

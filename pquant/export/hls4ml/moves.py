"""Conversion of steps that move values. A reordering costs nothing until a layer needs another order than that of its input."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.formats import Format
from pquant.export.graph import MoveStep
from pquant.export.hls4ml import precision
from pquant.export.hls4ml.elements import select
from pquant.export.hls4ml.layout import Order, channels_last, same, torch_order
from pquant.export.hls4ml.project import Project, Value

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
    whole = inputs[0]
    if len(inputs) > 1:
        joined = torch_order((sum(step.sizes),))
        flat = MoveStep(step.name, step.inputs, joined.shape, joined, step.sizes)
        whole = lower_move(project, flat, [project.reshape(step.name, value, value.order.ravel()) for value in inputs])
    return select(project, step.name, whole, step.index)


def _concatenated(project: Project, step: MoveStep, inputs: list[Value]) -> Value:
    """Return the concatenated inputs; the order of the result holds places in the concatenation of the inputs in torch's order."""
    if len(inputs[0].bounds.shape) > 1:
        kinds = [kind for kind in (channels_last, torch_order) if all(same(value.order, kind(value.bounds.shape)) for value in inputs)]
        inputs = [project.arrange(step.name, value, (kinds or [channels_last])[0](value.bounds.shape)) for value in inputs]
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
        types = {"result": precision.union(*(project.type_of(one) for one in (whole, other)))}
        whole = project.add("Concatenate", step.name, [whole, other], value, types, axis=axis + 1, op=kind)
    return whole


def _natural(order: Order, shape: tuple[int, ...]) -> bool:
    return same(order, torch_order(shape)) or same(order, channels_last(shape))


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :] if axis < len(shape) else (-1,)


def _joined(first: Any, second: Any) -> Any:
    sizes = [int(np.prod(value.shape)) for value in (first, second)]
    return first.gather(np.arange(sum(sizes)), second)


def _gathered(forms: list[Format | None], step: MoveStep) -> Format | None:
    """Return the format of moved values; padded zeros have a format without bits."""
    if any(form is None for form in forms) or len({form.overflow_mode for form in forms if form}) > 1:
        return None
    known = [form for form in forms if form is not None]
    k, i, f = (np.concatenate([*(getattr(form, part).ravel() for form in known), [0]])[step.index] for part in "kif")
    return Format(k, i, f, known[0].round_mode, known[0].overflow_mode)


def _padded(project: Project, step: MoveStep, value: Value) -> Value | None:
    """Return the value with zeros around its positions, or None if the step does not pad."""
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
    types = {"result": project.type_of(value).partition(",RND")[0]}
    result = replace(value, order=order, castable=False)
    return project.add(f"ZeroPadding{source.ndim - 1}D", step.name, [value], result, types, n_chan=source.shape[-1], **geometry)


def sizes(rank: int, shapes: dict[str, Sequence[int]]) -> dict[str, int]:
    """Return sizes by axis under hls4ml's names, for each given name."""
    return {f"{which}_{name}": int(size) for which, shape in shapes.items() for name, size in zip(SIZES[rank], shape, strict=False)}


def pads(rank: int, by_axis: list[tuple[int, int]]) -> dict[str, int]:
    """Return the numbers of zeros before and after each spatial axis under hls4ml's names."""
    return {f"pad_{name}": int(pad) for names, both in zip(SIDES[rank], by_axis, strict=False) for name, pad in zip(names, both, strict=True)}

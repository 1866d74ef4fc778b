"""Conversion of pools to hls4ml's layers."""

import itertools
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.export.formats import Constants
from pquant.export.graph import MoveStep
from pquant.export.hls4ml import precision
from pquant.export.hls4ml.layout import channels_last, torch_order
from pquant.export.hls4ml.moves import lower_move, pads, sizes
from pquant.export.hls4ml.project import Project, Value
from pquant.export.windows import pool_geometry, pool_windows


def lower_pool(project: Project, name: str, value: Value, layer: Any, bounds: Any, average: bool, guard: int = 0) -> Value:
    """Return the averages or maxima over windows.

    Args:
        project: the project that the pool is added to.
        name: name of the step.
        value: input of the pool.
        layer: an object with ``kernel_size``, ``stride`` and ``padding``.
        bounds: the result in integers, with its bounds.
        average: whether it is an average pool.
        guard: the largest number of fractional bits that the averages are rounded to.

    Raises:
        ConfigError: hls4ml has no such pool, or does not compute it bit-exactly.
    """
    rank = len(bounds.shape)
    _check_pool(project, layer, value.bounds.shape[1:], bounds.shape[1:])
    value = project.arrange(name, value, channels_last(value.bounds.shape))
    made = Value("", channels_last(bounds.shape), bounds, castable=True)
    kernel, stride, padded = pool_geometry(layer, rank - 1)
    if any(padded) and project.target.stream:
        value, padded = _zero_padded(project, name, value, average, padded), (0,) * len(padded)
    count = math.prod(kernel)
    fraction = max(value.bounds.f, guard + 1) + count.bit_length()
    exact = value.bounds.at(fraction) if average else value.bounds
    types = {"result": precision.of_values(exact), "accum": precision.of_values(exact.times(Constants(np.array(count if average else 1), 0)))}
    geometry = sizes(rank, {"in": value.order.shape, "out": made.order.shape, "pool": kernel, "stride": stride})
    geometry |= pads(rank, [(pad, pad) for pad in padded])
    if rank == 2:
        geometry |= {"n_in": value.order.shape[0], "n_out": made.order.shape[0]}
    value = _widened(project, name, value, (count, fraction) if average else None, any(padded))
    kind, operation = ("AveragePooling", "Average") if average else ("MaxPooling", "Max")
    geometry |= {"n_filt": value.order.shape[-1], "count_pad": bool(getattr(layer, "count_include_pad", True))}
    return project.add(f"{kind}{rank - 1}D", name, [value], made, types, pool_op=operation, **geometry)


def _zero_padded(project: Project, name: str, value: Value, average: bool, padded: tuple[int, ...]) -> Value:
    """Return the input of a pool with zeros around it, which hls4ml's pools of streams do not add themselves."""
    if not average and int(value.bounds.low.min()) < 0:
        raise ConfigError("hls4ml pads no max pool in a stream; the zeros before it are right for values that are never negative only")
    shape = value.bounds.shape
    places = np.pad(torch_order(shape), [(0, 0), *((pad, pad) for pad in padded)], constant_values=-1)
    return lower_move(project, MoveStep(name, (), places.shape, places, (math.prod(shape),)), [value])


def _check_pool(project: Project, layer: Any, given: tuple[int, ...], made: tuple[int, ...]) -> None:
    kernel, stride, padded = pool_geometry(layer, len(made))
    plain = [(size + 2 * pad - window) // step + 1 for size, pad, window, step in zip(given, padded, kernel, stride, strict=True)]
    dilation = getattr(layer, "dilation", 1)
    if (max(dilation) if isinstance(dilation, tuple) else dilation) > 1 or tuple(plain) != made:
        raise ConfigError("hls4ml has no pool with dilation or with windows beyond the end of the input (ceil_mode)")
    if getattr(layer, "divisor_override", None):
        raise ConfigError("hls4ml has no average pool with a divisor of its own")
    if any(padded) and project.target.stream and not getattr(layer, "count_include_pad", True):
        raise ConfigError("hls4ml counts the zeros around an average pool in a stream: set count_include_pad=True")
    if project.target.stream and kernel != stride and not (project.target.amd and len(made) == 1):
        raise ConfigError("hls4ml's pools of streams have stride = kernel_size")
    if any(padded) and not project.target.amd:
        raise ConfigError("hls4ml pads pools bit-exactly for Vitis and Vivado only")


def _widened(project: Project, name: str, value: Value, mean: tuple[int, int] | None, padded: bool) -> Value:
    """Return the input of a pool in a type with which hls4ml computes the pool exactly.

    hls4ml pads a max pool with the lowest value of this type, and most backends divide sums in it. ``mean`` is the number of values and the
    fractional bits of an average.
    """
    if mean is not None and not project.target.amd:
        count, fraction = mean
        largest = max(value.bounds.at(fraction).largest, 1 << fraction) * count
        kind = precision.of_integers(-largest, largest, fraction)
    elif mean is None and padded and project.type_of(value).startswith("u"):
        kind = precision.signed(precision.of_values(value.bounds))
    else:
        return value
    return project.add("Activation", name, [value], replace(value, castable=False), {"result": kind}, activation="linear", n_in=value.order.size)


def windows_of(index: np.ndarray, shape: tuple[int, ...]) -> Any:
    """Return the pool of values of ``shape`` whose windows are the last axis of ``index``; None if no pool has these windows."""
    rank, size = len(shape) - 1, index.shape[-1]
    if rank not in (1, 2) or index.ndim != rank + 2 or (index < 0).any():
        return None
    for kernel in itertools.product(range(1, size + 1), repeat=rank):
        if math.prod(kernel) != size or any(window > length for window, length in zip(kernel, shape[1:], strict=True)):
            continue
        for stride, padded in itertools.product(itertools.product(range(1, max(kernel) + 1), repeat=rank), range(max(kernel) // 2 + 1)):
            pool = SimpleNamespace(kernel_size=kernel, stride=stride, padding=(padded,) * rank)
            given = [(length + 2 * padded - window) // step + 1 for length, window, step in zip(shape[1:], kernel, stride, strict=True)]
            if tuple(given) == index.shape[1:-1] and np.array_equal(_inside(pool_windows(shape, pool, index.shape[1:-1]), index.shape), index):
                return pool
    return None


def _inside(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return windows in one axis, with places outside replaced by a place of the same window, which does not change its maximum."""
    flat = places.reshape(shape)
    return np.where(flat < 0, flat.max(-1, keepdims=True), flat)

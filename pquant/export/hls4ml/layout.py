"""The order of values in memory: hls4ml has channels last, torch has channels first.

An order is an array in hls4ml's shape that holds the place of each value in torch's flat tensor.
"""

import itertools
import math

import numpy as np

Order = np.ndarray


def torch_order(shape: tuple[int, ...]) -> Order:
    """Return torch's order of a shape."""
    return np.arange(math.prod(shape)).reshape(shape)


def channels_last(shape: tuple[int, ...]) -> Order:
    """Return the order of (*positions, channels) for a torch shape (channels, *positions)."""
    return np.moveaxis(torch_order(shape), 0, -1)


def same(order: Order, other: Order) -> bool:
    """Return whether both orders hold the same values in the same sequence; shapes may differ."""
    return order.size == other.size and np.array_equal(order.ravel(), other.ravel())


def transposition(order: Order, wanted: Order) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Return (shape, axes) so that ``order.reshape(shape).transpose(axes)`` has the sequence of ``wanted``; None if no transposition does."""
    if order.size != wanted.size:
        return None
    for shape in (order.shape, _strided(order, wanted)):
        for axes in itertools.permutations(range(len(shape or ()))):
            if shape and same(order.reshape(shape).transpose(axes), wanted):
                return shape, axes
    return None


def _strided(order: Order, wanted: Order) -> tuple[int, ...] | None:
    """Return the shape of ``wanted`` in the sequence of ``order``, the slowest axis first."""
    place = np.argsort(order.ravel())[wanted]
    axes = [axis for axis, size in enumerate(wanted.shape) if size > 1]
    strides = [int(np.take(place, 1, axis).ravel()[0] - place.ravel()[0]) for axis in axes]
    shape = tuple(wanted.shape[axis] for _, axis in sorted(zip(strides, axes, strict=True), reverse=True))
    return shape if min(strides, default=0) > 0 else None

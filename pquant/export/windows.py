"""The places that the windows of convolutions and pools cover."""

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
Pads = Sequence[tuple[int, int]]


def windows(
    shape: tuple[int, ...], kernel: tuple[int, ...], stride: tuple[int, ...], pads: Pads, dilation: tuple[int, ...], mode: str = "constant"
) -> np.ndarray:
    """Return the places (channels, *positions, *kernel) of an array (channels, *sizes) that each position of a window covers; -1 is a padded zero."""
    constant: dict[str, Any] = {"constant_values": -1} if mode == "constant" else {}
    index = np.pad(np.arange(math.prod(shape)).reshape(shape), [(0, 0), *pads], mode=mode, **constant)  # type: ignore[call-overload]
    return _slid(index, kernel, stride, dilation)


def transposed_windows(shape: tuple[int, ...], layer: Any, sizes: tuple[int, ...]) -> np.ndarray:
    """Return the places (channels, *sizes, *kernel) that the outputs of a transposed convolution take, for a reversed kernel; -1 is a zero."""
    rank = len(sizes)
    stride, pads, dilation = (_each(value, rank) for value in (layer.stride, layer.padding, layer.dilation))
    reach = [step * (size - 1) for step, size in zip(dilation, layer.kernel_size, strict=True)]
    index = np.full((shape[0], *(size + more for size, more in zip(sizes, reach, strict=True))), -1)
    places = [np.arange(size) * step + more - pad for size, step, more, pad in zip(shape[1:], stride, reach, pads, strict=True)]
    inside = [(place >= 0) & (place < size) for place, size in zip(places, index.shape[1:], strict=True)]
    given = np.arange(math.prod(shape)).reshape(shape)
    kept = [place[keep] for place, keep in zip(places, inside, strict=True)]
    index[np.ix_(np.arange(shape[0]), *kept)] = given[np.ix_(np.arange(shape[0]), *(np.flatnonzero(keep) for keep in inside))]
    return _slid(index, layer.kernel_size, (1,) * rank, dilation)


def pool_windows(shape: tuple[int, ...], layer: Any, sizes: tuple[int, ...]) -> np.ndarray:
    """Return the places (channels, *sizes, *kernel) of a pool; -1 is outside of the array."""
    kernel, stride, pads = pool_geometry(layer, len(sizes))
    dilation = _each(getattr(layer, "dilation", 1), len(sizes))
    needed = [(size - 1) * step + gap * (width - 1) + 1 for size, step, gap, width in zip(sizes, stride, dilation, kernel, strict=True)]
    ends = [(pad, max(need - pad - length, 0)) for pad, need, length in zip(pads, needed, shape[1:], strict=True)]
    found = windows(shape, kernel, stride, ends, dilation)
    return found[(slice(None), *(slice(size) for size in sizes))]


def pool_sizes(shape: tuple[int, ...], layer: Any, sizes: tuple[int, ...]) -> np.ndarray:
    """Return by how many values an average pool divides at each position of ``sizes``, for an input (channels, *lengths)."""
    kernel, stride, pads = pool_geometry(layer, len(sizes))
    if getattr(layer, "divisor_override", None):
        return np.full(sizes, layer.divisor_override)
    padded = tuple(length + 2 * pad for length, pad in zip(shape[1:], pads, strict=True))
    whole = SimpleNamespace(kernel_size=kernel, stride=stride, padding=0)
    places = pool_windows((1, *padded), whole, sizes) if layer.count_include_pad else pool_windows((1, *shape[1:]), layer, sizes)
    return (places[0].reshape(*sizes, -1) >= 0).sum(-1)


def pool_geometry(layer: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return (kernel, stride, padding) of a pool over ``rank`` axes, with one number per axis."""
    stride = layer.kernel_size if layer.stride is None else layer.stride
    return _each(layer.kernel_size, rank), _each(stride, rank), _each(layer.padding, rank)


def padding(layer: Any) -> list[tuple[int, int]]:
    """Return the padding (before, after) of a convolution for each axis."""
    if layer.padding == "valid":
        return [(0, 0)] * len(layer.kernel_size)
    if layer.padding == "same":
        totals = [step * (size - 1) for step, size in zip(layer.dilation, layer.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(pad, pad) for pad in layer.padding]


def _each(value: Any, rank: int) -> tuple[int, ...]:
    return (value,) * rank if isinstance(value, int) else tuple(value) * (rank // len(value))


def _slid(index: np.ndarray, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...]) -> np.ndarray:
    spans = [step * (size - 1) + 1 for step, size in zip(dilation, kernel, strict=True)]
    view = np.lib.stride_tricks.sliding_window_view(index, spans, axis=tuple(range(1, index.ndim)))
    return view[(slice(None), *(slice(None, None, step) for step in stride), *(slice(None, None, step) for step in dilation))]

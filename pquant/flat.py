"""Several tensors through one autograd function at once: small ones cost less together than one by one."""

import math
from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

Elementwise = type[torch.autograd.Function]
Shapes = tuple[torch.Size, ...]
Layout = tuple[int, int, int]
MANY = 2
"""Tensors from which on loops gain more in a short training than the half second that it takes to load them."""


class Each(NamedTuple):
    """An elementwise autograd function: what it is given beside a tensor, spread over that, and its settings, which have no gradient."""

    function: Elementwise
    beside: tuple[Tensor, ...] = ()
    settings: tuple[Any, ...] = ()

    def __call__(self, x: Tensor) -> Tensor:
        """Return what the function gives for one tensor."""
        return x if self is SAME else self.function.apply(x, *self.beside, *self.settings)


SAME = Each(torch.autograd.Function)
"""Leaves every value as it is."""


class Over(NamedTuple):
    """One function for the tensors from ``begin`` to ``end``, and what each of them is given beside."""

    begin: int
    end: int
    each: Sequence[Each]


class Course:
    """Tensors that go through elementwise functions, one after the other; calling it sends them, by one node in autograd's graph.

    Args:
        tensors: of one dtype and device.
        passes: at least one for each tensor. Those of one pass have their function and settings in common, which is called once for all of them,
            laid end to end in one axis. Of two passes that share tensors, one has all those of the other.
    """

    def __init__(self, tensors: Sequence[Tensor], passes: Sequence[Over]) -> None:
        self.passes = passes
        self.shapes = tuple(tensor.shape for tensor in tensors)
        self.beside = [[tensor for column in zip(*(each.beside for each in over.each), strict=True) for tensor in column] for over in passes]
        self.tensors = (*tensors, *(tensor for column in self.beside for tensor in column))
        self.there, self.back = (_Route(self.shapes, order) for order in (passes, passes[::-1]))

    def __call__(self) -> tuple[Tensor, ...]:
        """Return what the tensors become."""
        return _Through.apply(self, *self.tensors)


Source = tuple[int, slice | None]


class _Route:
    """Where each pass finds its values, and where the last ones are: (number, slice) of the tensors, and then of what each pass has made."""

    def __init__(self, shapes: Shapes, passes: Sequence[Over]) -> None:
        ends = (0, *accumulate(shape.numel() for shape in shapes))
        pieces: list[tuple[int, ...]] = [(n, n + 1, n, n, n + 1) for n in range(len(shapes))]

        def source(begin: int, end: int, number: int, first: int, last: int) -> Source:
            return number, None if (begin, end) == (first, last) else slice(ends[begin] - ends[first], ends[end] - ends[first])

        self.passes: list[list[Source]] = []
        for number, (begin, end, _) in enumerate(passes, len(shapes)):
            before = [(start, min(stop, begin), *made) for start, stop, *made in pieces if start < begin]
            inside = [(max(start, begin), min(stop, end), *made) for start, stop, *made in pieces if start < end and begin < stop]
            after = [(max(start, end), stop, *made) for start, stop, *made in pieces if end < stop]
            self.passes.append([source(*piece) for piece in inside])
            pieces = [*before, (begin, end, number, begin, end), *after]
        self.results = [(source(*piece), shapes[piece[0] : piece[1]]) for piece in pieces]


def _taken(values: Sequence[Tensor], sources: Sequence[Source]) -> Tensor:
    parts = [values[number] if cut is None else values[number][cut] for number, cut in sources]
    return parts[0].reshape(-1) if len(parts) == 1 else _flatten_dense_tensors(parts)


def _results(values: Sequence[Tensor], route: _Route) -> list[Tensor]:
    return [tensor for source, shapes in route.results for tensor in apart(_taken(values, [source]), shapes)]


class _Kept:
    """Stands for the context of one function in the graph."""

    needs_input_grad = (True,) * 8
    saved_tensors: tuple[Tensor, ...] = ()

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, course: Course, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.course, ctx.kept, values = course, [], list(tensors[: len(course.shapes)])
        for over, sources, beside in zip(course.passes, course.there.passes, course.beside, strict=True):
            kept, each, columns = _Kept(), over.each[0], len(over.each[0].beside)
            spread = end_to_end(beside, course.shapes[over.begin : over.end] * columns).chunk(columns) if columns else ()
            values.append(each.function.forward(kept, _taken(values, sources), *spread, *each.settings))
            ctx.kept.append(kept)
        return tuple(_results(values, course.there))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        course, values = ctx.course, list(grads)
        beside: list[Tensor | None] = []
        for over, sources, given, kept in zip(reversed(course.passes), course.back.passes, reversed(course.beside), reversed(ctx.kept), strict=True):
            count, shapes = over.end - over.begin, course.shapes[over.begin : over.end]
            value, *slopes = over.each[0].function.backward(kept, _taken(values, sources))
            values.append(value)
            own: list[Tensor | None] = []
            for start in range(0, len(given), count):
                slope, column = slopes[start // count], tuple(tensor.shape for tensor in given[start : start + count])
                own += [None] * count if slope is None else apart(slope, shapes, column)
            beside = own + beside
        return None, *_results(values, course.back), *beside


def end_to_end(tensors: Sequence[Tensor], shapes: Shapes) -> Tensor:
    """Return tensors, each spread over its shape, in one axis; a view where there is one tensor alone."""
    given = tuple(tensor.shape for tensor in tensors)
    if given == shapes and not torch.compiler.is_compiling():
        return _flatten_dense_tensors(tensors)
    spread = _looped(shapes, given, tensors)
    if spread is None:
        return torch.cat([x.expand(shape).reshape(-1) for x, shape in zip(tensors, shapes, strict=True)])
    from pquant import loops

    out = torch.empty(spread.total)
    loops.gather(np.array([tensor.data_ptr() for tensor in tensors]), spread.sizes, spread.repeats, spread.total, out.data_ptr())
    return out


def apart(flat: Tensor, shapes: Shapes, given: Shapes | None = None) -> list[Tensor]:
    """Return what lies end to end: views of it in ``shapes``, or its sums over all that tensors of the shapes ``given`` were spread over."""
    if given is None or given == shapes:
        if torch.compiler.is_compiling():
            return [part.view(shape) for part, shape in zip(flat.split([shape.numel() for shape in shapes]), shapes, strict=True)]
        return list(_unflatten_dense_tensors(flat, _like(shapes)))
    spread = _looped(shapes, given, [flat])
    if spread is None:
        return [part.sum_to_size(shape) for part, shape in zip(apart(flat, shapes), given, strict=True)]
    from pquant import loops

    sums = torch.empty(spread.given)
    loops.totals(flat.data_ptr(), spread.total, spread.sizes, spread.repeats, sums.data_ptr())
    return apart(sums, given)


def _looped(shapes: Shapes, given: Shapes, tensors: Sequence[Tensor]) -> "Spread | None":
    if len(shapes) < MANY or torch.compiler.is_compiling() or not all(map(is_plain, tensors)):
        return None
    return _spread(shapes, given)


@cache
def _like(shapes: Shapes) -> tuple[Tensor, ...]:
    """Return tensors of the shapes, without values."""
    return tuple(torch.empty(shape, device="meta") for shape in shapes)


def is_plain(x: Any) -> bool:
    """Return whether loops over memory take ``x``: float32 values in a row, in CPU memory, and nothing more than a tensor."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype is torch.float32 and x.is_cpu and x.is_contiguous()


class Spread(NamedTuple):
    """Values by tensor and how often each is repeated; how many there are in all, before and after."""

    sizes: np.ndarray[Any, Any]
    repeats: np.ndarray[Any, Any]
    given: int
    total: int


@cache
def _spread(shapes: Shapes, given: Shapes) -> Spread | None:
    """Return how tensors of shapes ``given`` are spread over ``shapes``; None where not every value is repeated for a row of others."""
    layouts = [layout(whole, part) for whole, part in zip(shapes, given, strict=True)]
    if any(one is None or one[0] != 1 for one in layouts):
        return None
    sizes, repeats = (np.array([one[axis] for one in layouts if one]) for axis in (1, 2))
    return Spread(sizes, repeats, int(sizes.sum()), int((sizes * repeats).sum()))


def layout(values: torch.Size, given: torch.Size) -> Layout | None:
    """Return (outer, given, inner) of values, with which others broadcast along the middle axis alone; None where they do not."""
    if len(given) > len(values):
        return None
    padded = torch.Size((1,) * (len(values) - len(given)) + tuple(given))
    total, count = math.prod(values), math.prod(padded)
    axes = [axis for axis, size in enumerate(padded) if size != 1]
    if not axes:
        return 1, 1, total
    begin, end = axes[0], axes[-1] + 1
    if padded[begin:end] != values[begin:end]:
        return None
    outer = math.prod(values[:begin])
    return outer, count, total // max(outer * count, 1)

"""Several tensors through one autograd function at once: small ones cost less together than one by one."""

import math
from collections.abc import Callable, Sequence
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
SMALL = 2**15
"""Number of values up to which a tensor gains more by going with others than it loses by being copied."""
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


def stands_for(kind: type, each: str, method: str) -> bool:
    """Return whether the method called ``each`` says what ``method`` does: not where a subclass has only given another ``method``."""
    return next(name for one in kind.__mro__ for name in (each, method) if name in vars(one)) == each


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
        self.beside = [_Beside(over, self.shapes[over.begin : over.end]) for over in passes]
        self.tensors = (*tensors, *(tensor for beside in self.beside for tensor in beside.tensors))
        self.there, self.back = (_Route(self.shapes, order) for order in (passes, passes[::-1]))

    def __call__(self) -> tuple[Tensor, ...]:
        """Return what the tensors become."""
        return _Through.apply(self, *self.tensors)


class _Beside:
    """What the tensors of a pass are given: columns with one tensor for each."""

    def __init__(self, over: Over, shapes: Shapes) -> None:
        columns = list(zip(*(each.beside for each in over.each), strict=True))
        given = [tuple(tensor.shape for tensor in column) for column in columns]
        self.tensors = [tensor for column in columns for tensor in column]
        self.columns = [laid(shapes, one) for one in given]
        self.all = laid(shapes * len(columns), tuple(shape for one in given for shape in one))

    def spread(self) -> Sequence[Tensor]:
        """Return each column, spread, in one axis."""
        return self.all.end_to_end(self.tensors).chunk(len(self.columns)) if self.columns else ()

    def summed(self, slopes: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return the gradients of the tensors from those of the columns."""
        grads: list[Tensor | None] = []
        for slope, column in zip(slopes, self.columns, strict=False):
            grads += [None] * len(column.shapes) if slope is None else column.apart(slope)
        return grads


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
        self.results = [(source(*piece), laid(own, own)) for piece in pieces for own in [shapes[piece[0] : piece[1]]]]


def _taken(values: Sequence[Tensor], sources: Sequence[Source]) -> Tensor:
    parts = [values[number] if cut is None else values[number][cut] for number, cut in sources]
    return parts[0].reshape(-1) if len(parts) == 1 else _flatten_dense_tensors(parts)


def _results(values: Sequence[Tensor], route: _Route) -> list[Tensor]:
    return [tensor for source, parts in route.results for tensor in parts.apart(_taken(values, [source]))]


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
            kept, each = _Kept(), over.each[0]
            values.append(each.function.forward(kept, _taken(values, sources), *beside.spread(), *each.settings))
            ctx.kept.append(kept)
        return tuple(_results(values, course.there))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        course, values, slopes = ctx.course, list(grads), []
        for number, sources in zip(reversed(range(len(course.passes))), course.back.passes, strict=True):
            value, *slope = course.passes[number].each[0].function.backward(ctx.kept[number], _taken(values, sources))
            values.append(value)
            slopes.append(course.beside[number].summed(slope))
        return None, *_results(values, course.back), *(tensor for own in reversed(slopes) for tensor in own)


class Laid:
    """Tensors of shapes ``given`` in one axis, end to end, each spread over its one of ``shapes``."""

    def __init__(self, shapes: Shapes, given: Shapes) -> None:
        self.shapes, self.given = shapes, given
        self.as_given = shapes == given
        self.likes = [torch.empty(shape, device="meta") for shape in given]
        layouts = [layout(whole, part) for whole, part in zip(shapes, given, strict=True)]
        self.in_rows = len(shapes) >= MANY and all(one is not None and one[0] == 1 for one in layouts)
        self.counts, self.repeats = (np.array([one[axis] for one in layouts if one]) for axis in (1, 2))
        self.total, self.given_total = (sum(shape.numel() for shape in some) for some in (shapes, given))

    def end_to_end(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return the values of the tensors; a view where there is one tensor alone."""
        if self.as_given:
            return _flatten_dense_tensors(tensors)
        if not (self.in_rows and all(map(is_plain, tensors))):
            return _spread(tensors, self.shapes)
        from pquant import loops

        out = torch.empty(self.total)
        loops.gather(np.array(addresses(*tensors)), self.counts, self.repeats, self.total, out.data_ptr())
        return out

    def apart(self, flat: Tensor) -> list[Tensor]:
        """Return the tensors of what lies in one axis: views of it, or its sums over all that tensors were spread over."""
        if self.as_given:
            return list(_unflatten_dense_tensors(flat, self.likes))
        if not (self.in_rows and is_plain(flat)):
            return _summed(flat, self.shapes, self.given)
        from pquant import loops

        sums = torch.empty(self.given_total)
        loops.totals(flat.data_ptr(), self.total, self.counts, self.repeats, sums.data_ptr())
        return list(_unflatten_dense_tensors(sums, self.likes))


laid: Callable[[Shapes, Shapes], Laid] = cache(Laid)


def _spread(tensors: Sequence[Tensor], shapes: Shapes) -> Tensor:
    return torch.cat([x.expand(shape).reshape(-1) for x, shape in zip(tensors, shapes, strict=True)])


def _summed(flat: Tensor, shapes: Shapes, given: Shapes) -> list[Tensor]:
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape).sum_to_size(before) for part, shape, before in zip(parts, shapes, given, strict=True)]


def end_to_end(tensors: Sequence[Tensor], shapes: Shapes) -> Tensor:
    """Return tensors, each spread over its shape, in one axis; a view where there is one tensor alone."""
    if torch.compiler.is_compiling():
        return _spread(tensors, shapes)
    return laid(shapes, tuple(tensor.shape for tensor in tensors)).end_to_end(tensors)


def apart(flat: Tensor, shapes: Shapes, given: Shapes | None = None) -> list[Tensor]:
    """Return what lies end to end: views of it in ``shapes``, or its sums over all that tensors of the shapes ``given`` were spread over."""
    if torch.compiler.is_compiling():
        return _summed(flat, shapes, given or shapes)
    return laid(shapes, given or shapes).apart(flat)


def is_plain(x: Any) -> bool:
    """Return whether loops over memory take ``x``: float32 values in a row, in CPU memory, and nothing more than a tensor."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype is torch.float32 and x.is_cpu and x.is_contiguous()


def addresses(*tensors: Tensor) -> tuple[int, ...]:
    """Return where the values of tensors lie in memory."""
    return tuple(tensor.data_ptr() for tensor in tensors)


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

"""Several tensors through elementwise functions by one node of autograd's graph: small ones cost less together than one by one."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pquant.flat import Shapes, addresses, is_plain, laid, run_of, runs, whole

VERSION = attrgetter("_version")
Elementwise = type[torch.autograd.Function]


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


class Rows(NamedTuple):
    """What several tensors are given, unspread: for each where its ``counts`` values lie, each for ``repeats`` values in a row; ``total`` in all."""

    addresses: np.ndarray[Any, Any]
    counts: np.ndarray[Any, Any]
    repeats: np.ndarray[Any, Any]
    total: int


class InRows(torch.autograd.Function):
    """An elementwise function that loops over memory can take too, for all tensors at once, given :class:`Rows` instead of spread tensors."""

    @staticmethod
    def takes_rows(each: Each) -> bool:
        """Return whether loops take what the function is given here."""
        return True

    @staticmethod
    def takes(beside: Tensor) -> bool:
        """Return whether loops take a tensor that the function is given beside."""
        return is_plain(beside)

    @staticmethod
    def forward_in_rows(ctx: Any, parts: Sequence[Tensor], *given: Any) -> Tensor:
        """Return what ``forward`` does, end to end, for tensors whose values are thought end to end, given rows and settings."""
        raise NotImplementedError

    @staticmethod
    def backward_in_rows(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        """Return the gradients of the values and of what is in rows, each end to end, for gradients thought end to end."""
        raise NotImplementedError


class Over(NamedTuple):
    """One function for the tensors from ``begin`` to ``end``, and what each of them is given beside."""

    begin: int
    end: int
    each: Sequence[Each]


class Course:
    """Tensors that go through elementwise functions, one after the other; calling it sends them, by one node in autograd's graph.

    Tensors whose values lie end to end in memory are taken as they lie, others are copied together.

    Args:
        tensors: of one dtype and device.
        passes: at least one for each tensor. Those of one pass have their function and settings in common, which is called once for all of them,
            laid end to end in one axis. Of two passes that share tensors, one has all those of the other.
    """

    def __init__(self, tensors: Sequence[Tensor], passes: Sequence[Over]) -> None:
        self.shapes = tuple(tensor.shape for tensor in tensors)
        self.given, self.passes = tensors, [_Pass(over, self.shapes[over.begin : over.end]) for over in passes]
        self.tensors = (*tensors, *(tensor for one in self.passes for tensor in one.tensors))
        self.back = _Route(self.shapes, [(n, n + 1) for n in range(len(tensors))], passes[::-1])
        self.overs, self.joined = passes, [*tensors]
        self.borders = sorted({0, len(tensors), *(border for over in passes for border in (over.begin, over.end))})
        self.where: tuple[int, ...] = ()

    def __call__(self) -> tuple[Tensor, ...]:
        """Return what the tensors become."""
        if addresses(*self.joined, *self.tensors) != self.where:
            self._locate()
        return _Through.apply(self, *self.tensors)

    def _locate(self) -> None:
        """Find out where in memory the values lie."""
        found = [run for begin, end in pairwise(self.borders) for run in runs(self.given[begin:end], begin)]
        self.joined = [self.given[begin] if end == begin + 1 else run_of(self.given[begin:end]) for begin, end in found]
        self.there = _Route(self.shapes, found, self.overs)
        self.where = addresses(*self.joined, *self.tensors)
        plain = all(map(is_plain, self.given))
        for one in self.passes:
            one.locate(plain)


class _Pass:
    """One function, and what the tensors of its pass are given: columns with one tensor for each."""

    def __init__(self, over: Over, shapes: Shapes) -> None:
        self.each = over.each[0]
        self.function, _, self.settings = self.each
        columns = list(zip(*(each.beside for each in over.each), strict=True))
        given = [tuple(tensor.shape for tensor in column) for column in columns]
        self.tensors = [tensor for column in columns for tensor in column]
        self.columns = [laid(shapes, one) for one in given]
        self.unspread = [laid(one, one) for one in given]
        self.all = laid(shapes * len(columns), tuple(shape for one in given for shape in one))

    def locate(self, plain: bool) -> None:
        """Find out where what is given lies in memory, for a function that takes it in rows where the values are ``plain``."""
        self.rows: list[Rows] | None = None
        takes_rows = issubclass(self.function, InRows) and self.function.takes_rows(self.each) and all(map(self.function.takes, self.tensors))
        if plain and takes_rows and all(column.in_rows for column in self.columns):
            where = np.array(addresses(*self.tensors)).reshape(len(self.columns), -1 if self.columns else 0)
            self.rows = [Rows(one, column.counts, column.repeats, column.given_total) for one, column in zip(where, self.columns, strict=True)]

    def forward(self, kept: "_Kept", parts: Sequence[Tensor]) -> Tensor:
        """Return what the function gives for values thought end to end."""
        kept.in_rows = self.rows is not None
        if self.rows is not None:
            return self.function.forward_in_rows(kept, parts, *self.rows, *self.settings)  # type: ignore[attr-defined]
        spread = self.all.end_to_end(self.tensors).chunk(len(self.columns)) if self.columns else ()
        return self.function.forward(kept, whole(parts), *spread, *self.settings)

    def backward(self, kept: "_Kept", parts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Return the gradients of the values, and of each tensor that is given."""
        if kept.in_rows:
            rows = parts if all(map(Tensor.is_contiguous, parts)) else [part.contiguous() for part in parts]
            slope, *slopes = self.function.backward_in_rows(kept, rows)  # type: ignore[attr-defined]
        else:
            slope, *slopes = self.function.backward(kept, whole(parts))
        grads: list[Tensor | None] = []
        for one, column in zip(slopes, self.unspread if kept.in_rows else self.columns, strict=False):
            grads += [None] * len(column.given) if one is None else column.apart(one)
        return slope, grads


Source = tuple[int, tuple[int, int] | None]


class _Route:
    """Where each pass finds its values, and where the last ones are: (number, (start, length)) of runs of tensors and what each pass makes."""

    def __init__(self, shapes: Shapes, found: Sequence[tuple[int, int]], passes: Sequence[Over]) -> None:
        ends = (0, *accumulate(shape.numel() for shape in shapes))
        pieces: list[tuple[int, ...]] = [(*run, number, *run) for number, run in enumerate(found)]

        def source(begin: int, end: int, number: int, first: int, last: int) -> Source:
            return number, None if (begin, end) == (first, last) else (ends[begin] - ends[first], ends[end] - ends[begin])

        self.passes: list[list[Source]] = []
        for number, (begin, end, _) in enumerate(passes, len(found)):
            before = [(start, min(stop, begin), *made) for start, stop, *made in pieces if start < begin]
            inside = [(max(start, begin), min(stop, end), *made) for start, stop, *made in pieces if start < end and begin < stop]
            after = [(max(start, end), stop, *made) for start, stop, *made in pieces if end < stop]
            self.passes.append([source(*piece) for piece in inside])
            pieces = [*before, (begin, end, number, begin, end), *after]
        self.results = [(source(*piece), laid(own, own)) for piece in pieces for own in [shapes[piece[0] : piece[1]]]]


def _parts(values: Sequence[Tensor], sources: Sequence[Source]) -> list[Tensor]:
    return [values[number] if cut is None else values[number].narrow(0, *cut) for number, cut in sources]


def _results(values: Sequence[Tensor], route: _Route) -> list[Tensor]:
    return [tensor for source, parts in route.results for tensor in parts.apart(whole(_parts(values, [source])))]


class _Kept:
    """Stands for the context of one function in the graph."""

    needs_input_grad = (True,) * 8
    saved_tensors: tuple[Tensor, ...] = ()
    in_rows = False

    def save_for_backward(self, *tensors: Tensor) -> None:
        self.saved_tensors = tensors


class _Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, course: Course, *tensors: Tensor) -> tuple[Tensor, ...]:
        values = list(course.joined)
        ctx.course, ctx.kept, ctx.versions = course, [_Kept() for _ in course.passes], [*map(VERSION, tensors)]
        for one, kept, sources in zip(course.passes, ctx.kept, course.there.passes, strict=True):
            values.append(one.forward(kept, _parts(values, sources)))
        return tuple(_results(values, course.there))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        course, values, slopes = ctx.course, list(grads), []
        if ctx.versions != [*map(VERSION, course.tensors)]:
            raise RuntimeError("a parameter was changed in place between forward and backward, which needs its value")
        for one, kept, sources in zip(reversed(course.passes), reversed(ctx.kept), course.back.passes, strict=True):
            value, own = one.backward(kept, _parts(values, sources))
            values.append(value)
            slopes.append(own)
        return None, *_results(values, course.back), *(tensor for own in reversed(slopes) for tensor in own)

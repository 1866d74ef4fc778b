"""Small tensors end to end in one axis: they cost less together than one by one."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

T = TypeVar("T", bound=Tensor)
Shapes = tuple[torch.Size, ...]
Layout = tuple[int, int, int]
SMALL = 2**15
"""Number of values up to which a tensor gains more by going with others than it loses by being copied."""
MANY = 2
"""Tensors from which on loops gain more in a short training than the half second that it takes to load them."""


@cache
def _loops() -> ModuleType:
    from pquant import loops

    return loops


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
        out = torch.empty(self.total)
        _loops().gather(np.array(addresses(*tensors)), self.counts, self.repeats, self.total, out.data_ptr())
        return out

    def apart(self, flat: Tensor) -> list[Tensor]:
        """Return the tensors of what lies in one axis: views of it, or its sums over all that tensors were spread over."""
        if self.as_given:
            return list(_unflatten_dense_tensors(flat, self.likes))
        if not (self.in_rows and is_plain(flat)):
            return _summed(flat, self.shapes, self.given)
        sums = torch.empty(self.given_total)
        _loops().totals(flat.data_ptr(), self.total, self.counts, self.repeats, sums.data_ptr())
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


def in_order(tensors: Iterable[T]) -> list[T]:
    """Return tensors in the order in which they lie end to end: those of more axes first, as what prunes weights leaves biases alone."""
    return sorted(tensors, key=lambda tensor: -tensor.ndim)


def runs(tensors: Sequence[Tensor], first: int = 0) -> list[tuple[int, int]]:
    """Return the runs, from begin to end, of tensors whose values lie end to end in one memory; the numbers of the tensors begin with ``first``."""
    follows = [_follows(one, two) for one, two in pairwise(tensors)]
    ends = [*(place for place, joined in enumerate(follows, first + 1) if not joined), first + len(tensors)]
    return list(zip([first, *ends[:-1]], ends, strict=True))


def _follows(one: Tensor, two: Tensor) -> bool:
    in_a_row = one.is_contiguous() and two.is_contiguous() and one.dtype is two.dtype
    touching = in_a_row and one.data_ptr() + one.numel() * one.element_size() == two.data_ptr()
    return touching and one.untyped_storage().data_ptr() == two.untyped_storage().data_ptr()


def joined(tensors: Sequence[Tensor]) -> Tensor | None:
    """Return :func:`run_of` of tensors whose values lie end to end in one memory, else None."""
    first, at = tensors[0], tensors[0].data_ptr()
    dtype, size = first.dtype, first.element_size()
    for tensor in tensors:
        if tensor.data_ptr() != at or tensor.dtype is not dtype or not tensor.is_contiguous():
            return None
        at += tensor.numel() * size
    return run_of(tensors) if first.untyped_storage().data_ptr() == tensors[-1].untyped_storage().data_ptr() else None


def run_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the values of a run of tensors in one axis, in their own memory."""
    return tensors[0].detach().as_strided((sum(tensor.numel() for tensor in tensors),), (1,))


def whole(parts: Sequence[Tensor]) -> Tensor:
    """Return the values of tensors end to end in one axis; those of one tensor as they lie."""
    if len(parts) > 1:
        return _flatten_dense_tensors(parts)
    return parts[0] if parts[0].ndim == 1 and parts[0].is_contiguous() else parts[0].reshape(-1)


def is_plain(x: Any) -> bool:
    """Return whether loops over memory take ``x``: float32 values in a row, in CPU memory, and nothing more than a tensor."""
    return type(x) in (Tensor, nn.Parameter) and x.dtype is torch.float32 and x.is_cpu and x.is_contiguous()


def addresses(*tensors: Tensor) -> tuple[int, ...]:
    """Return where the values of tensors lie in memory."""
    return tuple(map(Tensor.data_ptr, tensors))


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

"""Several tensors through one autograd function at once: small ones cost less together than one by one."""

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

Elementwise = type[torch.autograd.Function]
Shapes = tuple[torch.Size, ...]
Layout = tuple[int, int, int]
MANY = 6
"""Tensors from which on loops gain more in a short training than the half second that it takes to load them."""


def as_one(function: Elementwise, columns: Sequence[Sequence[Tensor]], *settings: Any) -> list[Tensor]:
    """Return what an elementwise function gives for each of several tensors, by one call and one node in autograd's graph.

    Args:
        function: works on tensors of one shape, and is called with each column laid end to end in one axis.
        columns: its first arguments: the tensors, then what goes with each and is spread over it.
        settings: its other arguments, which have no gradient.
    """
    return list(_AsOne.apply(function, len(columns[0]), settings, *(tensor for column in columns for tensor in column)))


class _AsOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, count: int, settings: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        columns = [tensors[start : start + count] for start in range(0, len(tensors), count)]
        ctx.function, ctx.given = function, [tuple(tensor.shape for tensor in column) for column in columns]
        shapes = ctx.given[0]
        return tuple(apart(function.forward(ctx, *(end_to_end(column, shapes) for column in columns), *settings), shapes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        shapes = ctx.given[0]
        columns = ctx.function.backward(ctx, end_to_end(grads, shapes))
        return None, None, None, *(part for column, given in zip(columns, ctx.given, strict=False) for part in apart(column, shapes, given))


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

"""Several tensors through one autograd function at once: small ones cost less together than one by one."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

Elementwise = type[torch.autograd.Function]


def as_one(function: Elementwise, columns: Sequence[Sequence[Tensor]], *settings: Any) -> list[Tensor]:
    """Return what an elementwise function gives for each of several tensors, by one call and one node in autograd's graph.

    Args:
        function: works on tensors of one shape, and is called with each column laid end to end in one axis.
        columns: its first arguments: the tensors, then what goes with each and is spread over it.
        settings: its other arguments, which have no gradient.
    """
    shapes = [tensor.shape for tensor in columns[0]]
    return list(_AsOne.apply(function, shapes, settings, *(tensor for column in columns for tensor in column)))


class _AsOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, function: Any, shapes: list[torch.Size], settings: tuple[Any, ...], *tensors: Tensor) -> tuple[Tensor, ...]:
        count = len(shapes)
        ctx.function, ctx.shapes, ctx.given = function, shapes, [tensor.shape for tensor in tensors]
        columns = [end_to_end(tensors[start : start + count], shapes) for start in range(0, len(tensors), count)]
        return tuple(apart(function.forward(ctx, *columns, *settings), shapes))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        columns = ctx.function.backward(ctx, end_to_end(grads, ctx.shapes))[: len(ctx.given) // len(ctx.shapes)]
        parts = [part for column in columns for part in apart(column, ctx.shapes)]
        return None, None, None, *(part if part.shape == shape else part.sum_to_size(shape) for part, shape in zip(parts, ctx.given, strict=True))


def end_to_end(tensors: Sequence[Tensor], shapes: Sequence[torch.Size]) -> Tensor:
    """Return tensors, each spread over its shape, in one axis."""
    return torch.cat([(x if x.shape == shape else x.expand(shape)).reshape(-1) for x, shape in zip(tensors, shapes, strict=True)])


def apart(flat: Tensor, shapes: Sequence[torch.Size]) -> list[Tensor]:
    """Return views of what lies end to end."""
    parts = flat.split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]

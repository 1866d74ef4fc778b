"""Tensors laid end to end and taken apart again, against tensor operations."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pquant.course import Course, Each, Over
from pquant.flat import apart, end_to_end

SHAPES = st.lists(st.integers(0, 5), max_size=3).map(torch.Size)


@st.composite
def spreads(draw: st.DrawFn) -> tuple[Tensor, torch.Size]:
    """Return a tensor and a shape that it broadcasts to: ones anywhere among its axes, or axes missing in front."""
    shape = draw(SHAPES)
    kept = [size if draw(st.booleans()) else 1 for size in shape]
    while kept and kept[0] == 1 and draw(st.booleans()):
        kept.pop(0)
    return torch.randn(kept), shape


@given(st.lists(spreads(), min_size=1, max_size=9), st.booleans())
def test_end_to_end_is_what_broadcasting_gives(pairs: list[tuple[Tensor, torch.Size]], double: bool) -> None:
    tensors, shapes = [tensor.double() if double else tensor for tensor, _ in pairs], tuple(shape for _, shape in pairs)
    expected = [value for tensor, shape in zip(tensors, shapes, strict=True) for value in tensor.expand(shape).flatten().tolist()]
    assert end_to_end(tensors, shapes).tolist() == expected


@given(st.lists(spreads(), min_size=1, max_size=9))
def test_taken_apart_it_is_summed_over_what_was_spread(pairs: list[tuple[Tensor, torch.Size]]) -> None:
    shapes, small = tuple(shape for _, shape in pairs), tuple(tensor.shape for tensor, _ in pairs)
    flat = torch.randn(sum(map(math.prod, shapes)))
    whole = apart(flat, shapes)
    assert [part.shape for part in whole] == [*shapes]
    assert [value for part in whole for value in part.flatten().tolist()] == flat.tolist()
    for part, shape, total in zip(whole, small, apart(flat, shapes, small), strict=True):
        torch.testing.assert_close(total, part.double().sum_to_size(shape).float(), rtol=1e-6, atol=1e-6)


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scale, power):
        ctx.save_for_backward(x, scale)
        ctx.power = power
        return x * scale**power

    @staticmethod
    def backward(ctx, *grads):
        x, scale = ctx.saved_tensors
        return grads[0] * scale**ctx.power, grads[0] * x * ctx.power * scale ** (ctx.power - 1), None


SCALES = [[(), (), ()], [(3, 1), (4, 1), (2,)], [(3, 2), (4, 5), (2,)], [(1, 2), (1, 5), (1,)]]
SPANS = {
    "one": [[(0, 3)]],
    "a part, then all": [[(0, 2)], [(0, 3)]],
    "all, then a part": [[(0, 3)], [(0, 1)]],
    "all, then a part amid": [[(0, 3)], [(1, 2)]],
    "apart": [[(0, 1), (1, 3)]],
    "parts, then all, then parts": [[(0, 1), (2, 3)], [(0, 3)], [(0, 2), (2, 3)]],
}


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("spans", SPANS)
def test_a_course_is_its_functions_one_after_the_other(spans: str, scales: list[tuple[int, ...]]) -> None:
    x = [torch.randn(shape, requires_grad=True) for shape in ((3, 2), (4, 5), (2,))]
    layers = [[torch.rand(shape).add_(0.5).requires_grad_() for shape in scales] for _ in SPANS[spans]]
    passes, alone = [], list(x)
    for power, (runs, scale) in enumerate(zip(SPANS[spans], layers, strict=True), 1):
        for begin, end in runs:
            passes.append(Over(begin, end, [Each(_Scaled, (by,), (power,)) for by in scale[begin:end]]))
            alone[begin:end] = [one * by**power for one, by in zip(alone[begin:end], scale[begin:end], strict=True)]
    together, leaves = Course(x, passes)(), x + [by for scale in layers for by in scale]
    grads = [torch.randn_like(one) for one in x]
    for mine, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(mine, theirs)
    mine, theirs = (torch.autograd.grad(given, leaves, grads, allow_unused=True) for given in (together, alone))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_the_functions_work_in_a_compiled_graph_too() -> None:
    tensors, shapes = [torch.randn(3, 1), torch.randn(())], (torch.Size((3, 2)), torch.Size((4,)))
    compiled = torch.compile(
        lambda *given: apart(end_to_end(given, shapes), shapes, tuple(one.shape for one in given)), backend="eager", fullgraph=True
    )
    for tensor, total, times in zip(tensors, compiled(*tensors), (2, 4), strict=True):
        torch.testing.assert_close(total, times * tensor)

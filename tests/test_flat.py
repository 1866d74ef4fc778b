"""Tensors laid end to end and taken apart again, against tensor operations."""

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pquant.flat import apart, end_to_end, joined

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


def test_the_functions_work_in_a_compiled_graph_too() -> None:
    tensors, shapes = [torch.randn(3, 1), torch.randn(())], (torch.Size((3, 2)), torch.Size((4,)))
    compiled = torch.compile(
        lambda *given: apart(end_to_end(given, shapes), shapes, tuple(one.shape for one in given)), backend="eager", fullgraph=True
    )
    for tensor, total, times in zip(tensors, compiled(*tensors), (2, 4), strict=True):
        torch.testing.assert_close(total, times * tensor)


def test_what_lies_end_to_end_is_joined_without_a_copy() -> None:
    memory = torch.arange(12.0)
    parts = [memory[:3], memory[3:9].view(2, 3), memory[9:10]]
    run = joined(parts)
    assert run is not None and run.tolist() == list(range(10)) and run.data_ptr() == memory.data_ptr()
    for apart_ in ([memory[:3], memory[4:]], [memory[:3], torch.zeros(3)], [memory[:3], memory[3:9].view(2, 3).T], parts[::-1]):
        assert joined(apart_) is None
    assert joined([memory[:3], memory.view(torch.int32)[3:]]) is None

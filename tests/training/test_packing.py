"""Packing a state against a deep copy of it."""

import copy
import io
from collections import Counter, OrderedDict
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pquant.training.packing import pack, unpack

TENSORS = st.builds(
    lambda shape, dtype, seed: torch.testing.make_tensor(shape, dtype=dtype, device="cpu") if seed else torch.zeros(shape, dtype=dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from([torch.float32, torch.float64, torch.bool, torch.int64, torch.uint8, torch.bfloat16]),
    st.booleans(),
)
STATES = st.recursive(
    TENSORS | st.integers() | st.text(max_size=3) | st.none() | st.booleans(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=4)
    ),
    max_leaves=12,
)


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and first.stride() == second.stride() and torch.equal(first.nan_to_num(), second.nan_to_num())
    if isinstance(first, dict):
        return type(first) is type(second) and list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return type(first) is type(second) and first == second


def through_a_file(packed: Any) -> Any:
    buffer = io.BytesIO()
    torch.save(packed, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@given(STATES)
def test_a_state_comes_back_as_it_was_also_from_a_file(state: Any) -> None:
    assert same(unpack(pack(state)), state)
    assert same(unpack(through_a_file(pack(state))), state)


def test_few_tensors_are_written_however_many_there_are() -> None:
    packed = pack({"model": {str(index): torch.full((index,), float(index)) for index in range(50)}, "mask": torch.ones(3, dtype=torch.bool)})
    assert [flat.numel() for flat in packed["flat"].values()] == [sum(range(50)), 3]


@pytest.mark.parametrize("count", [1, 2])
def test_a_packed_state_is_a_copy_and_so_is_what_is_unpacked(count: int) -> None:
    state = [torch.ones(2, requires_grad=True) for _ in range(count)]
    packed = pack(state)
    with torch.no_grad():
        state[0].zero_()
    first = unpack(packed)
    assert first[0].tolist() == [1, 1] and not first[0].requires_grad
    first[0].zero_()
    assert unpack(packed)[0].tolist() == [1, 1]


def test_what_a_models_and_a_schedulers_state_hold_beside_values_is_kept() -> None:
    state: OrderedDict[str, Any] = nn.Sequential(nn.BatchNorm1d(3)).state_dict()
    schedule = torch.optim.lr_scheduler.MultiStepLR(torch.optim.SGD([torch.zeros(1)], 0.1), [2, 2, 5]).state_dict()
    new = unpack(through_a_file(pack({"model": state, "scheduler": schedule})))
    assert new["model"]._metadata == state._metadata  # type: ignore[attr-defined]
    assert new["scheduler"]["milestones"] == Counter({2: 2, 5: 1})


def test_values_that_are_not_in_a_row_keep_their_layout() -> None:
    image = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    state = {"image": image, "transposed": torch.arange(6.0).view(2, 3).T}
    before = copy.deepcopy(state)
    packed = pack(state)
    image.zero_()
    assert same(unpack(packed), before)

"""Exact counts, ties, budgets over layers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pquant.pruning import Magnitude
from pquant.pruning.masks import global_budget, keep_largest, keep_largest_by_row, threshold_shape, uniform_budget
from pquant.pruning.method import PrunedWeights

SHARES = st.floats(0, 1)


def layers(*weights: Tensor) -> PrunedWeights:
    return {f"layer{index}": (Magnitude().pruner(weight, nn.Linear), weight) for index, weight in enumerate(weights)}


@pytest.mark.parametrize(
    ("kind", "dense", "conv"), [("channelwise", (4, 1), (4, 1, 1, 1)), ("layerwise", (1, 1), (1, 1, 1, 1)), ("weightwise", (4, 3), (4, 3, 2, 2))]
)
def test_threshold_shapes_broadcast_with_the_weight(kind: str, dense: tuple, conv: tuple) -> None:
    assert threshold_shape(kind, torch.empty(4, 3)) == dense
    assert threshold_shape(kind, torch.empty(4, 3, 2, 2)) == conv


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(-2, 33))
def test_keep_largest_drops_exactly_the_lowest_of_equal_ones_the_last(values: list[int], pruned: int) -> None:
    keep = keep_largest(torch.tensor(values, dtype=torch.float32), pruned).tolist()
    order = sorted(range(len(values)), key=lambda index: (values[index], -index))
    assert {index for index, kept in enumerate(keep) if not kept} == set(order[: max(pruned, 0)])


def test_keep_largest_keeps_the_shape() -> None:
    keep = keep_largest(torch.arange(24.0).view(2, 3, 4), 5)
    assert keep.shape == (2, 3, 4) and keep.dtype is torch.bool
    assert not keep.flatten()[:5].any() and keep.flatten()[5:].all()


@given(st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=5), st.data())
def test_keep_largest_by_row_drops_the_asked_count_of_each_row(rows: list[list[int]], data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(0, 6), min_size=len(rows), max_size=len(rows)))
    keep = keep_largest_by_row(torch.tensor(rows, dtype=torch.float32), torch.tensor(counts))
    for row, count, kept in zip(rows, counts, keep.tolist(), strict=True):
        assert kept.count(False) == count
        dropped = [value for value, stays in zip(row, kept, strict=True) if not stays]
        assert sorted(dropped) == sorted(row)[:count]


@given(SHARES, st.integers(0, 2**30))
def test_a_global_budget_is_one_threshold_over_all_layers_and_adds_up_exactly(share: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(shape, generator=generator) for shape in ((3, 5), (2, 2, 3), (1, 1))]
    counts = list(global_budget(layers(*weights), share).values())
    every = sorted((float(value), index) for index, weight in enumerate(weights) for value in weight.abs().flatten())
    gone = [index for _, index in every[: round(share * len(every))]]
    assert counts == [gone.count(index) for index in range(3)]


@given(SHARES, st.lists(st.integers(0, 2), min_size=1, max_size=8), st.lists(st.integers(0, 2), min_size=1, max_size=8))
def test_ties_do_not_change_the_total(share: float, first: list[int], second: list[int]) -> None:
    weights = [torch.tensor([values], dtype=torch.float32) for values in (first, second)]
    counts = global_budget(layers(*weights), share)
    assert sum(counts.values()) == round(share * (len(first) + len(second)))
    assert all(0 <= counts[name] <= weight.numel() for name, (_, weight) in layers(*weights).items())


@given(SHARES)
def test_a_uniform_budget_rounds_and_does_not_truncate(share: float) -> None:
    assert uniform_budget(layers(torch.empty(20, 1), torch.empty(1, 1)), share) == {"layer0": round(share * 20), "layer1": round(share)}
    assert uniform_budget(layers(torch.empty(20, 1)), 0.29) == {"layer0": 6}

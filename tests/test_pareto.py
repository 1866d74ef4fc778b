"""Fronts against their definition, by brute force."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pquant.pareto import Direction, front

POINTS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12)


@pytest.mark.parametrize("x", get_args(Direction))
@pytest.mark.parametrize("y", get_args(Direction))
@given(points=POINTS)
def test_the_front_is_what_no_other_surpasses(x: Direction, y: Direction, points: list[tuple[int, int]]) -> None:
    costs = [tuple(value if way == "minimize" else -value for value, way in zip(point, (x, y), strict=True)) for point in points]

    def surpassed(index: int) -> bool:
        mine = costs[index]
        others = [cost for other, cost in enumerate(costs) if cost != mine or other < index]
        return any(all(theirs <= own for theirs, own in zip(cost, mine, strict=True)) for cost in others)

    kept = front(points, x, y)
    assert set(kept) == {index for index in range(len(points)) if not surpassed(index)}
    assert [points[index][0] for index in kept] == sorted(points[index][0] for index in kept)


def test_what_is_no_number_is_on_no_front() -> None:
    assert front([(1.0, math.nan), (math.nan, 0.0), (2.0, 0.5)], "minimize", "maximize") == [2]
    assert front([], "minimize", "maximize") == []

"""The search against the enumeration of everything there is."""

import itertools
import logging
import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pquant.fitcompress.search import State, search


@dataclass
class Grid:
    """States are points of a grid; a step goes up by one along an axis. Lengths and sizes are drawn from ``seeds``."""

    ends: tuple[int, ...]
    steps: dict[tuple[State, State], float]
    sizes: dict[State, float]
    norms: dict[State, float]
    asked: list[State] = field(default_factory=list)

    def neighbours(self, state: State) -> list[State]:
        self.asked.append(state)
        raised = [(*state[:axis], state[axis] + 1, *state[axis + 1 :]) for axis in range(len(state))]
        return [one for one in raised if one in self.sizes]

    def distance(self, state: State, neighbour: State) -> float:
        return self.steps[state, neighbour]

    def compression(self, state: State) -> float:
        return self.sizes[state]

    def to_nothing(self, state: State) -> float:
        return self.norms[state]


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    ends = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=3)))
    states = list(itertools.product(*(range(end + 1) for end in ends)))
    length = st.floats(0, 5) | st.integers(0, 2).map(float)
    steps = {
        (state, up): draw(length)
        for state in states
        for axis in range(len(ends))
        if (up := (*state[:axis], state[axis] + 1, *state[axis + 1 :])) in states
    }
    return Grid(ends, steps, {state: draw(st.floats(0.01, 1)) for state in states}, {state: draw(st.floats(0, 50)) for state in states})


def shortest(grid: Grid, goal: float) -> float:
    """Return the length of the shortest way to a state at most as large as ``goal``: every state's, in the order of the grid."""
    lengths = {}
    for state in sorted(grid.sizes):
        below = [(*state[:axis], state[axis] - 1, *state[axis + 1 :]) for axis in range(len(state)) if state[axis]]
        lengths[state] = min((lengths[one] + grid.steps[one, state] for one in below), default=0.0)
    return min((length for state, length in lengths.items() if grid.sizes[state] <= goal), default=math.inf)


GOALS = st.floats(0.005, 1)


@given(grids(), GOALS, st.floats(0, 10))
@settings(deadline=None)
def test_the_full_search_finds_the_optimum_of_the_enumeration_for_every_lambda(grid: Grid, goal: float, f_lambda: float) -> None:
    found, best = search(grid, (0,) * len(grid.ends), goal, f_lambda, greedy=False), shortest(grid, goal)
    assert found.shortest
    assert found.reached == (best < math.inf)
    if found.reached:
        assert found.length == pytest.approx(best, rel=1e-12, abs=1e-12)
        assert grid.sizes[found.end] <= goal
    else:
        assert grid.sizes[found.end] == min(grid.sizes.values())


@given(grids(), GOALS, st.floats(0, 10), st.booleans())
@settings(deadline=None)
def test_a_path_is_made_of_steps_and_its_lengths_add_up(grid: Grid, goal: float, f_lambda: float, greedy: bool) -> None:
    start = (0,) * len(grid.ends)
    found = search(grid, start, goal, f_lambda, greedy)
    assert found.states[0] == start and found.lengths[0] == 0
    total = 0.0
    for before, after, length in zip(found.states, found.states[1:], found.lengths[1:], strict=False):
        total += grid.steps[before, after]
        assert length == total
    assert search(grid, start, goal, f_lambda, greedy) == found


@given(grids(), GOALS, st.floats(0, 10))
@settings(deadline=None)
def test_the_greedy_search_takes_the_best_neighbour_and_looks_at_no_other(grid: Grid, goal: float, f_lambda: float) -> None:
    found = search(grid, (0,) * len(grid.ends), goal, f_lambda, greedy=True)
    assert not found.shortest or len(found.states) == 1
    asked, grid.asked = grid.asked, []
    length = 0.0
    for state, after in zip(asked, asked[1:], strict=False):
        ranked = [(length + grid.steps[state, up] + f_lambda * abs(grid.sizes[up] - goal) * grid.norms[up], up) for up in grid.neighbours(state)]
        assert after == min(ranked)[1]
        length += grid.steps[state, after]
    assert found.expanded == len(asked)
    if found.reached and len(found.states) > 1:
        beside = {up: grid.steps[asked[-1], up] for up in grid.neighbours(asked[-1]) if grid.sizes[up] <= goal}
        assert found.states[:-1] == tuple(asked) and beside[found.end] == min(beside.values())


def line(sizes: list[float], lengths: list[float]) -> Grid:
    states = [(index,) for index in range(len(sizes))]
    steps = {(before, after): length for before, after, length in zip(states, states[1:], lengths, strict=False)}
    return Grid((len(sizes) - 1,), steps, dict(zip(states, sizes, strict=True)), dict.fromkeys(states, 1.0))


def fork() -> Grid:
    """Return two ways to the goal: along the first axis it starts cheap and ends dear, along the second the other way round."""
    states = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2)]
    steps = {((0, 0), (1, 0)): 1.0, ((1, 0), (2, 0)): 9.0, ((0, 0), (0, 1)): 2.0, ((0, 1), (0, 2)): 1.0}
    return Grid((2, 2), steps, dict(zip(states, [1.0, 0.5, 0.5, 0.1, 0.1], strict=True)), dict.fromkeys(states, 1.0))


def test_greedy_is_misled_where_the_full_search_is_not() -> None:
    assert search(fork(), (0, 0), 0.1, greedy=True).states == ((0, 0), (1, 0), (2, 0))
    full = search(fork(), (0, 0), 0.1, greedy=False)
    assert full.states == ((0, 0), (0, 1), (0, 2)) and full.length == 3.0 and full.shortest


def test_lambda_weighs_what_lies_ahead() -> None:
    grid = fork()
    grid.sizes[0, 1] = 0.2
    assert search(grid, (0, 0), 0.1, f_lambda=0.0, greedy=True).end == (2, 0)
    assert search(grid, (0, 0), 0.1, f_lambda=10.0, greedy=True).end == (0, 2)


def test_what_is_small_enough_stays_where_it_is() -> None:
    found = search(line([0.1, 0.05], [1.0]), (0,), 0.1)
    assert found.states == ((0,),) and found.reached and found.length == 0 and found.expanded == 0


def test_a_goal_out_of_reach_gives_the_smallest_state() -> None:
    for greedy in (True, False):
        found = search(line([1.0, 0.4, 0.6], [1.0, 1.0]), (0,), 0.1, greedy=greedy)
        assert not found.reached and found.end == (1,)


def test_a_search_cut_short_is_no_worse_than_greedy_and_claims_nothing() -> None:
    for most in (1, 2, 3):
        found = search(fork(), (0, 0), 0.1, greedy=False, max_states=most)
        assert found.reached and found.expanded <= most and found.length <= 10.0
        assert not found.shortest or found.length == 3.0


def test_progress_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        search(line([1 - index / 60 for index in range(60)], [1.0] * 59), (0,), 0.01)
    assert [record.getMessage() for record in caplog.records][0].startswith("compression 0.6000 (goal 0.0100), ")
    assert len(caplog.records) == 2

"""A* in the space of compressed networks: shortest paths on g + lambda f, B. Zandonati et al., arXiv 2302.07612.

The search does not depend on networks: a :class:`Space` defines the neighbours of a state, distances, and the size of each state.
"""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Protocol

log = logging.getLogger(__name__)

State = tuple[int, ...]
LOG_EVERY = 25
"""Number of expanded states between two log lines of progress."""


class Space(Protocol):
    """The space to search. The results of all four methods depend on the states alone."""

    def neighbours(self, state: State) -> Iterable[State]:
        """Return the states one step further; steps never lead back to a state."""
        ...

    def distance(self, state: State, neighbour: State) -> float:
        """Return the length of a step, at least 0."""
        ...

    def compression(self, state: State) -> float:
        """Return the size of a state relative to the uncompressed one."""
        ...

    def to_nothing(self, state: State) -> float:
        """Return the distance from a state to the state of size 0."""
        ...


@dataclass(frozen=True)
class Path:
    """A path from the start: its states, and the length of the path up to each of them.

    ``reached`` says whether the path ends at the goal; if not, it ends at the smallest state found. ``shortest`` says whether the path was proved to
    be the shortest to the goal (or that no path leads to the goal). ``expanded`` is the number of states whose neighbours were evaluated.
    """

    states: tuple[State, ...]
    lengths: tuple[float, ...]
    reached: bool
    shortest: bool
    expanded: int

    @property
    def end(self) -> State:
        """The last state."""
        return self.states[-1]

    @property
    def length(self) -> float:
        """Length of the whole path."""
        return self.lengths[-1]


def search(space: Space, start: State, goal: float, f_lambda: float = 1.0, greedy: bool = True, max_states: int = 20_000) -> Path:
    """Return the shortest path found from ``start`` to a state whose compression is at most ``goal``.

    The priority of a state is g + f_lambda f, with g the length of the path to it and f = |compression - goal| to_nothing. The greedy search drops
    all other open states after each choice, so that a single path remains; among goal states at the same step it takes the nearest. The full search
    keeps open states until none has a shorter path than the best path to a goal. Since paths only grow, it is exact for every ``f_lambda``, which
    sets only the order in which states are expanded; the greedy path is its first bound. After ``max_states`` expanded states the full search returns
    the best path so far, with ``shortest`` false. Ties go to the smaller state, so that the result is always the same.
    """
    way = _Search(space, start, goal, f_lambda).run(math.inf, greedy=True, limit=math.inf)
    if greedy:
        return way
    full = _Search(space, start, goal, f_lambda).run(way.length if way.reached else math.inf, greedy=False, limit=max_states)
    return full if full.reached or not way.reached else Path(way.states, way.lengths, True, full.shortest, full.expanded)


class _Search:
    """The open and closed states of one search."""

    def __init__(self, space: Space, start: State, goal: float, f_lambda: float) -> None:
        self.space, self.start, self.goal, self.f_lambda = space, start, goal, f_lambda
        self.lengths: dict[State, float] = {start: 0.0}
        self.before: dict[State, State] = {}
        self.open: list[tuple[float, State, float]] = []

    def run(self, bound: float, greedy: bool, limit: float) -> Path:
        """Search for a path shorter than ``bound``."""
        expanded, best, smallest, least = 0, None, self.start, self.space.compression(self.start)
        if least <= self.goal:
            return self._path(self.start, True, True, 0)
        self._push(self.start, 0.0, least)
        while self.open and not (greedy and best is not None) and expanded < limit:
            _, state, length = heappop(self.open)
            if length > self.lengths[state] or length >= bound:
                continue
            if greedy:
                self.open.clear()
            expanded += 1
            for neighbour in self.space.neighbours(state):
                new = length + self.space.distance(state, neighbour)
                if new >= min(self.lengths.get(neighbour, math.inf), bound):
                    continue
                self.lengths[neighbour], self.before[neighbour] = new, state
                size = self.space.compression(neighbour)
                if size < least:
                    smallest, least = neighbour, size
                if size <= self.goal:
                    best, bound = neighbour, new
                else:
                    self._push(neighbour, new, size)
            if expanded % LOG_EVERY == 0:
                log.info("compression %.4f (goal %.4f), %d open after %d states", self.space.compression(state), self.goal, len(self.open), expanded)
        exhausted = not greedy and all(length >= bound for _, _, length in self.open)
        return self._path(smallest if best is None else best, best is not None, exhausted, expanded)

    def _push(self, state: State, length: float, size: float) -> None:
        ahead = abs(size - self.goal) * self.space.to_nothing(state)
        heappush(self.open, (length + self.f_lambda * ahead, state, length))

    def _path(self, end: State, reached: bool, shortest: bool, expanded: int) -> Path:
        states = [end]
        while states[-1] != self.start:
            states.append(self.before[states[-1]])
        states.reverse()
        return Path(tuple(states), tuple(self.lengths[state] for state in states), reached, shortest, expanded)

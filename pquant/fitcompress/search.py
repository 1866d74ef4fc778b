"""A* in the space of compressed networks: shortest paths on g + lambda f, B. Zandonati et al., arXiv 2302.07612.

Nothing here knows what a network is: a :class:`Space` says which states lie next to each other, how far apart, and how small each is.
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
"""Expanded states between two lines of progress."""


class Space(Protocol):
    """What is searched. All four are functions of the states alone."""

    def neighbours(self, state: State) -> Iterable[State]:
        """Return the states one step further; no state is reached from itself."""
        ...

    def distance(self, state: State, neighbour: State) -> float:
        """Return the length of a step, at least 0."""
        ...

    def compression(self, state: State) -> float:
        """Return the size of a state relative to the uncompressed one."""
        ...

    def to_nothing(self, state: State) -> float:
        """Return the distance from a state to the one of size 0."""
        ...


@dataclass(frozen=True)
class Path:
    """A way from the start: its states, and the length of the way up to each of them.

    ``reached`` says whether it ends at the goal; when not, it ends at the smallest state seen. ``shortest`` says that it was proved to be the
    shortest of all ways to the goal (or that no way leads there). ``expanded`` counts the states whose neighbours were looked at.
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
        """Length of the whole way."""
        return self.lengths[-1]


def search(space: Space, start: State, goal: float, f_lambda: float = 1.0, greedy: bool = True, max_states: int = 20_000) -> Path:
    """Return the shortest way found from ``start`` to a state whose compression is at most ``goal``.

    A state's priority is g + f_lambda f, with g the length of the way to it and f = |compression - goal| to_nothing. Greedy: after each choice all
    other open states are dropped, which leaves one way; of the goal states beside its end, the nearest is taken. Full: open states are kept until
    none is left whose way is shorter than the best one to a goal. As ways only grow, this is exact for every ``f_lambda``, which sets
    only the order in which states are looked at; the greedy way is the first bound. After ``max_states`` expanded states the full search returns
    the best one so far, with ``shortest`` false. Ties go to the lesser state, so that the answer is always the same.
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
        """Search for a way shorter than ``bound``."""
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

"""Pareto fronts: the points that no other point dominates."""

import math
from collections.abc import Sequence
from typing import Literal

Direction = Literal["minimize", "maximize"]


def front(points: Sequence[tuple[float, float]], x_direction: Direction, y_direction: Direction) -> list[int]:
    """Return the indices of the Pareto-optimal points (x, y), sorted by x; of equal points the first. Points with NaN are left out."""
    signs = [1 if direction == "minimize" else -1 for direction in (x_direction, y_direction)]
    known = [index for index, point in enumerate(points) if not any(map(math.isnan, point))]
    order = sorted(known, key=lambda index: (signs[0] * points[index][0], signs[1] * points[index][1], index))
    best, kept = math.inf, []
    for index in order:
        if signs[1] * points[index][1] < best:
            best = signs[1] * points[index][1]
            kept.append(index)
    return sorted(kept, key=lambda index: points[index][0])

"""A budget of EBOPs: a controller moves their price, so that training ends at the EBOPs that were asked for."""

import logging
import math
from typing import Any

from torch import nn

log = logging.getLogger(__name__)

START_SHARE = 0.02
"""Loss that all EBOPs cost at the start price, where none is given; a loss is about 1."""
MOST_LOSS = 1.0
"""Loss that all EBOPs cost at most at the start price, given or not."""
LOWEST, HIGHEST = 0.1, 1e5
"""The price is kept within these factors of the start price; below, it is 0."""
SETTLED = 0.8
POWER = 2
ASYM = 2
RISE = 1.5
"""Relative rise of the price with the fall of the EBOPs that keeps them there: what the networks of our experiments have."""
PROPORTIONAL, INTEGRAL = 3.0, 0.3
"""Relative changes of the price: with a change of the relative error, and in an epoch with a lasting one."""
LARGEST_STEP = 1.5
"""Largest change of the logarithm of the price in an epoch."""
HELD = 0.05
"""Relative distance from the target within which it counts as held."""


class EbopsBudget(nn.Module):
    """The price of EBOPs that brings them to a target and keeps them there: a PI controller on logarithms, in velocity form.

    With E the EBOPs after epoch t of the train stage, r(t) = log E(0) + (log target - log E(0)) min(t / T, 1) the way to the target, which ends at
    epoch T, and e(t) = log E - r(t), an epoch changes the price p by

        log p += PROPORTIONAL (e(t) - e(t - 1)) + INTEGRAL e(t) + RISE (r(t - 1) - r(t)),

    the last term being what the way ahead asks for. A price at a bound stays there until the error turns, as nothing else adds up (no windup).
    EBOPs that fall faster than the way, by pruning for example, are free of charge until it has met them.

    Args:
        target: EBOPs to reach.
        price: the price to start from; 0: one at which all EBOPs cost a loss of 0.01.
    """

    def __init__(self, target: float, price: float = 0.0) -> None:
        super().__init__()
        self.target, self.given = float(target), price
        self.state: dict[str, float] = {}

    @property
    def price(self) -> float:
        """The price in force: 0 before the train stage, and while none is needed."""
        return 2 * self.state["start"] * math.sinh(self.state["level"]) if self.state else 0.0

    def begin(self, ebops: float, bits: float, epochs: float) -> None:
        ebops = max(ebops, 1.0)
        start = min(self.given or START_SHARE / ebops, MOST_LOSS / ebops)
        needed = ebops > self.target
        level = math.asinh(0.5) if needed else 0.0
        first = math.log(max(ebops, self.target))
        self.state = {"epoch": 0.0, "epochs": max(SETTLED * epochs, 1.0), "first": first, "bits": bits, "start": start, "level": level, "error": 0.0}

    def follow(self, ebops: float, bits: float) -> None:
        state = self.state
        before, now = self._way(state["epoch"]), self._way(state["epoch"] + 1)
        error = math.log(max(ebops, 1.0)) - now
        integral = INTEGRAL * (ASYM if error < 0 else 1)
        step = PROPORTIONAL * (error - state["error"]) + integral * error + RISE * (before - now)
        lowest = -8.0 if bits < state["bits"] - 0.5 else 0.0
        level = state["level"] + min(max(step, -LARGEST_STEP), LARGEST_STEP)
        self.state = state | {"epoch": state["epoch"] + 1, "error": error, "level": min(max(level, lowest), math.log(HIGHEST))}

    def _way(self, epoch: float) -> float:
        first = self.state["first"]
        left = max(1 - epoch / self.state["epochs"], 0.0)
        return math.log(self.target) + (first - math.log(self.target)) * left**POWER

    def get_extra_state(self) -> dict[str, float]:
        """Return where the controller is, for a checkpoint."""
        return dict(self.state)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`get_extra_state` gave."""
        self.state = dict(state)

"""A budget of EBOPs: a controller moves their price in the loss, so that training ends at the EBOPs that were asked for."""

import logging
import math
from typing import Any, NamedTuple

from torch import nn

log = logging.getLogger(__name__)

START_LOSS, MOST_START_LOSS = 0.02, 1.0
"""What all EBOPs cost at the start price, as a loss: where no price is given, and at most."""
PROPORTIONAL, INTEGRAL, BELOW, ABOVE = 3.0, 0.5, 8.0, 2.0
"""Gains: for a change of the error, for an error that lasts an epoch, and factors of the latter where two errors in a row are below or above."""
CALM, SWING, LEAST_GAIN = 0.6, 0.06, 0.15
"""Factor of the gain for changes after each swing of the error by more than a bound, and the least such gain."""
LUTS_PER_EBOP, LUTS_AT_NONE = 0.704, -69.0
"""The line LUTs = a EBOPs + b through the published HGQ models of the jet data, out of context on an UltraScale+ FPGA (experiments/jets)."""
RISE = 1.5
"""How the price that keeps EBOPs where they are rises as they fall: the slope of its logarithm, about that of dense networks on digits and jets."""
LARGEST_STEP, HIGHEST, LOWEST = 1.5, 12.0, -4.0
"""Bounds of the level: its change in an epoch, and itself."""
BITS_BACK = 0.5
"""Mean bits of a weight below those at the start from which on EBOPs may be bought back."""
TOLERANCE = 0.05
"""Relative distance from the target within which it is held."""


class Use(NamedTuple):
    """What a model uses as it would be finalized: exact EBOPs, and the mean width of its non-zero weights."""

    ebops: float
    bits: float


def ebops_for(luts: float) -> float:
    """Return the EBOPs of a fully unrolled dense network that takes a number of look-up tables, by the line of the published HGQ models."""
    return (luts - LUTS_AT_NONE) / LUTS_PER_EBOP


class EbopsBudget(nn.Module):
    """The price of EBOPs that brings them to a target and keeps them there: a PI controller on logarithms, in velocity form.

    With E the EBOPs after epoch t of the train stage, T the epoch at which they are to be at the target G, and

        r(t) = log G + (log E(0) - log G) max(1 - t / T, 0)^2

    the way there, which is steep while learning rates are high, the error is e(t) = log E(t) - r(t), and each epoch moves the level u of the price by

        g PROPORTIONAL (e(t) - e(t - 1)) + h INTEGRAL e(t) + RISE (r(t - 1) - r(t)),

    where the last term is what the next piece of the way asks for, and h = 1, but BELOW where the last two errors are negative, from where it is
    harder to return, and ABOVE where both are positive. g is 1 until the error swings from epoch to epoch: each swing lowers it, as the EBOPs of runs
    with many steps an epoch, or with few bits left, follow the price at once.

    The price is 2 p sinh(u) with the start price p: exponential in u when it is high, 0 at u = 0. Nothing but u adds up, and its bounds hold it until
    the error turns, so that there is no windup. Below 0 bits earn what they cost otherwise, so that EBOPs come back which pruning has taken beyond
    the target: as long as they are below the way and weights have fewer bits than at the start, of a model that began above the target.

    Args:
        target: EBOPs to reach, G.
        price: the price to start from, p; 0: one at which all EBOPs cost a loss of 0.02.
    """

    def __init__(self, target: float, price: float = 0.0) -> None:
        super().__init__()
        self.target, self.given = float(target), price
        self.state: dict[str, float] = {}

    @property
    def price(self) -> float:
        """The price in force; 0 before the train stage."""
        return 2 * self.state["start"] * math.sinh(self.state["level"]) if self.state else 0.0

    def begin(self, use: Use, epochs: float) -> None:
        """Start on the way from what a model uses to the target, to be reached after a number of epochs."""
        ebops = max(use.ebops, 1.0)
        start = min(self.given or START_LOSS / ebops, MOST_START_LOSS / ebops)
        needed = ebops > self.target
        self.state = {
            "epoch": 0.0,
            "epochs": max(epochs, 1.0),
            "first": math.log(max(ebops, self.target)),
            "bits": use.bits if needed else 0.0,
            "start": start,
            "level": math.asinh(0.5) if needed else 0.0,
            "error": 0.0,
            "change": 0.0,
            "gain": 1.0,
        }

    def announce(self, ebops: float) -> None:
        """Log where the controller does not start as it was told, after :meth:`begin` with a model of ``ebops``."""
        if self.given > self.state["start"]:
            loss = self.given * ebops
            log.warning("quantization.hgq_beta = %g would cost a loss of %.3g: the price starts at %.3g", self.given, loss, self.state["start"])
        if not self.state["bits"]:
            log.info("the target of %.0f EBOPs is not below the %.0f at the start: the budget is not needed, and the price is 0", self.target, ebops)

    def follow(self, use: Use) -> None:
        """Move the price after an epoch, with what the model uses then."""
        before, now = (self._way(self.state["epoch"] + passed) for passed in (0, 1))
        error = math.log(max(use.ebops, 1.0)) - now
        change = error - self.state["error"]
        swings = change * self.state["change"] < 0 and min(abs(change), abs(self.state["change"])) > SWING
        gain = max(CALM * self.state["gain"], LEAST_GAIN) if swings else self.state["gain"]
        lasts = BELOW if max(error, self.state["error"]) < 0 else ABOVE if min(error, self.state["error"]) > 0 else 1
        integral = INTEGRAL * lasts
        step = gain * PROPORTIONAL * change + integral * error + RISE * (before - now)
        level = self.state["level"] + min(max(step, -LARGEST_STEP), LARGEST_STEP)
        lowest = LOWEST if error < 0 and use.bits < self.state["bits"] - BITS_BACK else 0.0
        level = min(max(level, lowest), HIGHEST)
        self.state |= {"epoch": self.state["epoch"] + 1, "error": error, "change": change, "gain": gain, "level": level}

    def _way(self, epoch: float) -> float:
        target = math.log(self.target)
        return target + (self.state["first"] - target) * max(1 - epoch / self.state["epochs"], 0.0) ** 2

    def report(self, ebops: float) -> None:
        """Log how far a trained model of ``ebops`` is from the target, where it does not hold it, and what to do."""
        distance = ebops / self.target - 1
        if abs(distance) <= TOLERANCE:
            return
        where = f"the target of {self.target:,.0f} EBOPs is not held: the model has {ebops:,.0f} in the end, {100 * abs(distance):.1f} %"
        if distance < 0 and not self.state["bits"]:
            log.info("%s fewer: the budget was not needed", where)
        elif distance < 0:
            log.warning("%s fewer; prune less, or lower target_share, so that more of the train stage is left to return", where)
        else:
            log.warning("%s more: it was not reached; train longer, raise hgq_lr, prune more, or quantize what stays float", where)

    def get_extra_state(self) -> dict[str, float]:
        """Return where the controller is, for a checkpoint."""
        return dict(self.state)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`get_extra_state` gave."""
        self.state = dict(state)

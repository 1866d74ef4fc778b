"""A budget of EBOPs: a controller sets their regularization weight, beta, in the loss, so that training ends at the EBOPs that were asked for."""

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

GAIN = 4.0
"""Proportional gain: what all EBOPs cost, as a loss, for an error of 1 in their logarithm."""
INTEGRAL_TIME = 0.05
"""In what share of the epochs to the target an error that lasts adds as much to beta as it asks for at once."""
LEAST, MOST = -0.5, 5.0
"""Lower bound of beta times the EBOPs, and upper bound of the integral, as a loss of all EBOPs."""
MOST_AT_START = 1.0
"""The same for the beta that is given to start from."""
TOLERANCE = 0.05
"""Relative distance from the target within which it is held."""
LEAST_MEMORY = -GAIN * TOLERANCE / 2
"""Lower bound of the integral without pruning: what is left of it when pruning ends takes EBOPs above the plan, here by half the tolerance."""
RETURN = 2 * GAIN
"""How much lower the bound is for all that pruning takes in an epoch, as a logarithm of EBOPs: it has to be bought back in each."""
BITS_BACK = 0.5
"""Mean bits of a weight below those at the start from which on EBOPs may grow again."""
LUTS_PER_EBOP, LUTS_AT_NONE = 0.704, -69.0
"""The line LUTs = a EBOPs + b through the published HGQ models of the jet data, out of context on an UltraScale+ FPGA (experiments/jets_front)."""


class Use(NamedTuple):
    """What a model uses as it would be finalized: exact EBOPs, and the mean width of its non-zero weights; and the EBOPs by its trained widths."""

    ebops: float
    bits: float
    trained: float


def ebops_for(luts: float) -> float:
    """Return the EBOPs of a fully unrolled dense network that takes a number of look-up tables, by the line of the published HGQ models."""
    return (luts - LUTS_AT_NONE) / LUTS_PER_EBOP


class EbopsBudget(nn.Module):
    """The regularization weight of EBOPs, beta, that brings them to a target and keeps them there.

    It is set by a proportional-integral controller of the logarithm of EBOPs.

    With E the EBOPs at a step, and r the logarithm of those that are planned for its epoch, the loss has the term beta * E with

        beta = (GAIN (log E - r) + m) / E

    at this E. The plan falls from the E(0) at the start of the train stage to the target G after T epochs,

        r(t) = log G + (log E(0) - log G) max(1 - t / T, 0)^2 for the end of epoch t = 1, 2...,

    steep at first, while learning rates are high. The integral m grows after each epoch by a share of GAIN (log E - r), so that no error is
    left. This is the method of multipliers for the constraint log E = r (D. Bertsekas, "Constrained Optimization and Lagrange Multiplier Methods",
    1982, chapter 2), with a step of the multiplier that fits the length of the run.

    Where pruning takes EBOPs below the plan, beta becomes negative, so that bit widths grow again: as long as weights have fewer bits than at
    the start. For a model that begins below the target, beta is 0 until it exceeds it.

    Training counts EBOPs by bit widths, the target is of those that the finalized weights need: the ratio of the two, taken after each epoch,
    is part of the plan.

    Args:
        target: EBOPs to reach, G.
        beta: the first beta, which m begins with.
        share: of the train stage, in which to reach the target.
    """

    planned: Tensor
    integral: Tensor
    least: Tensor
    beta: Tensor
    epoch: Tensor
    epochs: Tensor
    first: Tensor
    bits: Tensor

    def __init__(self, target: float, beta: float = 0.0, share: float = 1.0) -> None:
        super().__init__()
        self.target, self.given, self.share = float(target), beta, share
        for name in ("planned", "integral", "least", "beta", "epoch", "epochs", "first", "bits"):
            self.register_buffer(name, torch.zeros(()))

    def cost(self, trained: Tensor) -> Tensor:
        """Return the term of EBOPs in the loss, a scalar; ``trained`` are those by trained widths, differentiable. 0 before the train stage."""
        now = trained.detach().clamp(min=1)
        beta = torch.maximum(GAIN * (now.log() - self.planned) + self.integral, self.least) / now
        return torch.where(self.epochs > 0, beta, 0) * trained

    @property
    def has_begun(self) -> bool:
        """Whether the train stage has begun."""
        return bool(self.epochs > 0)

    def begin(self, use: Use, epochs: float) -> None:
        """Start on the way from what a model uses to the target, with a train stage of a number of epochs."""
        self.epoch.zero_()
        self.epochs.fill_(self.share * epochs)
        self.first.fill_(math.log(max(use.ebops, self.target)))
        self.bits.fill_(use.bits if use.ebops > self.target else 0.0)
        self.integral.fill_(min(self.given * use.ebops, MOST_AT_START))
        self._plan(use)

    def follow(self, use: Use, before: float = 0.0) -> None:
        """Move the plan and beta after an epoch, with what the model uses then, and the EBOPs ``before`` pruning followed the epoch."""
        error = math.log(max(use.ebops, 1.0)) - self._way()
        share = min(1 / (INTEGRAL_TIME * float(self.epochs)), 1.0)
        taken = math.log(max(before / max(use.ebops, 1.0), 1.0))
        least = max(float(self.least), LEAST_MEMORY - RETURN * taken)
        self.integral.add_(share * GAIN * error).clamp_(least, MOST)
        self.epoch.add_(1)
        self._plan(use)

    def _way(self) -> float:
        """Return the logarithm of the EBOPs that are planned for the end of the epoch under way."""
        target, left = math.log(self.target), max(1 - float((self.epoch + 1) / self.epochs), 0.0)
        return target + (float(self.first) - target) * left**2

    def _plan(self, use: Use) -> None:
        ebops, trained = max(use.ebops, 1.0), max(use.trained, 1.0)
        may_return = bool(use.bits < self.bits - BITS_BACK)
        self.least.fill_(LEAST if may_return else 0.0)
        self.planned.fill_(self._way() + math.log(trained / ebops))
        self.beta.copy_(self.cost(torch.tensor(trained, device=self.beta.device)) / trained)

    def announce(self, ebops: float) -> None:
        """Log where the controller does not start as it was told, after :meth:`begin` with a model of ``ebops``."""
        if self.given * ebops > MOST_AT_START:
            message = "quantization.hgq_beta = %g would cost a loss of %.3g: it starts at %.3g"
            log.warning(message, self.given, self.given * ebops, MOST_AT_START / ebops)
        if ebops <= self.target:
            log.info("the target of %.0f EBOPs is not below the %.0f at the start: the budget is not needed, and beta is 0", self.target, ebops)

    def report(self, ebops: float) -> None:
        """Log how far a trained model of ``ebops`` is from the target, where it does not hold it, and what to do."""
        distance = ebops / self.target - 1
        if abs(distance) <= TOLERANCE:
            return
        where = f"the target of {self.target:,.0f} EBOPs is not held: the model has {ebops:,.0f} in the end, {100 * abs(distance):.1f} %"
        if distance < 0 and not self.bits:
            log.info("%s fewer: the budget was not needed", where)
        elif distance < 0:
            log.warning("%s fewer; prune less, or lower target_share, so that more of the train stage is left to return", where)
        else:
            log.warning("%s more: it was not reached; train longer, raise hgq_lr, prune more, or quantize what stays float", where)

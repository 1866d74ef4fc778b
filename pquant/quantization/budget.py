"""The EBOPs budget: a controller sets the regularization weight of EBOPs, beta, so that training ends at a given number of EBOPs."""

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

GAIN = 4.0
"""Proportional gain: the EBOPs term of the loss for an error of 1 in the logarithm of the EBOPs."""
INTEGRAL_TIME = 0.05
"""Integral time, as a fraction of the epochs to the target: after it, a constant error contributes as much by the integral as by the gain."""
LEAST, MOST = -0.5, 5.0
"""Lower bound of beta times the EBOPs, and upper bound of the integral, as an EBOPs term of the loss."""
MOST_AT_START = 1.0
"""Upper bound of the integral at the start, which ``hgq_beta`` sets."""
TOLERANCE = 0.05
"""Largest relative distance from the target at which the target counts as reached."""
LEAST_MEMORY = -GAIN * TOLERANCE / 2
"""Lower bound of the integral without pruning. When pruning ends, an integral at this bound keeps EBOPs above the plan by half the tolerance."""
RETURN = 2 * GAIN
"""How much lower the bound is in an epoch in which pruning removes EBOPs, per unit of their logarithm: beta has to return as many in each epoch."""
BITS_BACK = 0.5
"""EBOPs may grow again once the mean bits of a weight are this far below the mean at the start."""
LUTS_PER_EBOP, LUTS_AT_NONE = 0.704, -69.0
"""Coefficients of LUTs = a EBOPs + b, fitted to the published HGQ jet models, out of context on an UltraScale+ FPGA (experiments/jets_front)."""


class Use(NamedTuple):
    """Size of a model: exact EBOPs and mean bits of the non-zero weights if it were finalized now, and EBOPs by its trained bit widths."""

    ebops: float
    bits: float
    trained: float


def ebops_for(luts: float) -> float:
    """Return the EBOPs of a fully unrolled dense network that uses ``luts`` look-up tables, by the linear fit to the published HGQ models."""
    return (luts - LUTS_AT_NONE) / LUTS_PER_EBOP


class EbopsBudget(nn.Module):
    """A proportional-integral controller that sets the regularization weight of EBOPs, beta, to bring the EBOPs to a target and keep them there.

    Let E be the EBOPs at a step, and r the logarithm of the planned EBOPs of its epoch. The loss has the term beta * E with

        beta = (GAIN (log E - r) + m) / E,

    without a gradient through beta. The plan falls from E(0) at the start of the train stage to the target G after T epochs,

        r(t) = log G + (log E(0) - log G) max(1 - t / T, 0)^2 for the end of epoch t = 1, 2...,

    and falls fastest at first, while learning rates are high. After each epoch the integral m changes by a fraction of GAIN (log E - r), so that no
    constant error remains. This is the method of multipliers for the constraint log E = r (D. Bertsekas, "Constrained Optimization and Lagrange
    Multiplier Methods", 1982, chapter 2), with a step of the multiplier that depends on the length of the run.

    Where pruning takes the EBOPs below the plan, beta becomes negative, so that bit widths grow again. This is allowed only while weights have
    fewer bits than at the start. For a model that starts below the target, beta is 0 until the EBOPs exceed the target.

    Training counts EBOPs by bit widths, but the target is for the exact EBOPs of the finalized weights. The ratio of the two, measured after each
    epoch, corrects the plan.

    Args:
        target: EBOPs to reach, G.
        beta: the first beta, from which the first m is computed.
        share: fraction of the train stage after which the target is to be reached.
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
        """Return the EBOPs term of the loss, a scalar, 0 before the train stage. ``trained`` are the EBOPs by trained bit widths, differentiable."""
        now = trained.detach().clamp(min=1)
        beta = torch.maximum(GAIN * (now.log() - self.planned) + self.integral, self.least) / now
        return torch.where(self.epochs > 0, beta, 0) * trained

    @property
    def has_begun(self) -> bool:
        """Whether the train stage has begun."""
        return bool(self.epochs > 0)

    def begin(self, use: Use, epochs: float) -> None:
        """Start the plan: from the EBOPs of ``use`` to the target, for a train stage of ``epochs`` epochs."""
        self.epoch.zero_()
        self.epochs.fill_(self.share * epochs)
        self.first.fill_(math.log(max(use.ebops, self.target)))
        self.bits.fill_(use.bits if use.ebops > self.target else 0.0)
        self.integral.fill_(min(self.given * use.ebops, MOST_AT_START))
        self._plan(use)

    def follow(self, use: Use, before: float = 0.0) -> None:
        """Update the integral, the plan and beta after an epoch.

        ``use`` is the size of the model then, ``before`` its EBOPs before the pruners followed the epoch.
        """
        error = math.log(max(use.ebops, 1.0)) - self._way()
        share = min(1 / (INTEGRAL_TIME * float(self.epochs)), 1.0)
        taken = math.log(max(before / max(use.ebops, 1.0), 1.0))
        least = max(float(self.least), LEAST_MEMORY - RETURN * taken)
        self.integral.add_(share * GAIN * error).clamp_(least, MOST)
        self.epoch.add_(1)
        self._plan(use)

    def _way(self) -> float:
        """Return the logarithm of the EBOPs that are planned for the end of the current epoch."""
        target, left = math.log(self.target), max(1 - float((self.epoch + 1) / self.epochs), 0.0)
        return target + (float(self.first) - target) * left**2

    def _plan(self, use: Use) -> None:
        ebops, trained = max(use.ebops, 1.0), max(use.trained, 1.0)
        may_return = bool(use.bits < self.bits - BITS_BACK)
        self.least.fill_(LEAST if may_return else 0.0)
        self.planned.fill_(self._way() + math.log(trained / ebops))
        self.beta.copy_(self.cost(torch.tensor(trained, device=self.beta.device)) / trained)

    def announce(self, ebops: float) -> None:
        """Log, after :meth:`begin` with a model of ``ebops``, if the first beta is limited or the target needs no regularization."""
        if self.given * ebops > MOST_AT_START:
            message = "quantization.hgq_beta = %g would give a loss term of %.3g at the start: beta starts at %.3g"
            log.warning(message, self.given, self.given * ebops, MOST_AT_START / ebops)
        if ebops <= self.target:
            log.info("the target of %.0f EBOPs is not below the %.0f at the start: the budget is not needed, and beta is 0", self.target, ebops)

    def report(self, ebops: float) -> None:
        """Log the distance of a trained model of ``ebops`` from the target, if it exceeds ``TOLERANCE``, and advice."""
        distance = ebops / self.target - 1
        if abs(distance) <= TOLERANCE:
            return
        where = f"the target of {self.target:,.0f} EBOPs is missed: the final model has {ebops:,.0f}, {100 * abs(distance):.1f} %"
        if distance < 0 and not self.bits:
            log.info("%s fewer: the budget was not needed", where)
        elif distance < 0:
            log.warning("%s fewer; prune less, or lower target_share, which leaves more of the train stage to return to the target", where)
        else:
            log.warning("%s more; train longer, raise hgq_lr, prune more, or quantize what stays float", where)

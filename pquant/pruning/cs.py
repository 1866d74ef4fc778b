"""Continuous Sparsification.

P. Savarese, H. Silva, M. Maire, "Winning the Lottery with Continuous Sparsification", NeurIPS 2020, arXiv 1912.04427.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pquant.pruning.method import PruningMethod
from pquant.pruning.schedule import ScheduledPruner
from pquant.settings import schema, setting
from pquant.training.stage import Horizon


class CSPruner(ScheduledPruner):
    """Trainable scores s in the shape of one weight tensor, and the inverse temperature beta of the current epoch.

    The training mask is m = c sigmoid(beta s) with c = 1 / sigmoid(s0), so that m = 1 at the start. The finalized mask is c 1[s > 0].
    """

    beta: Tensor

    def __init__(self, method: "CS", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: CS = method
        self.factor = 1 + math.exp(-method.threshold_init)
        self.score = nn.Parameter(torch.full_like(weight, method.threshold_init))
        self.register_buffer("beta", weight.new_ones(()))

    def soft_mask(self) -> Tensor:
        """Return c sigmoid(beta s)."""
        return torch.sigmoid(self.beta * self.score) * self.factor

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return m W."""
        return weight * self.soft_mask()

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return s > 0."""
        return self.score > 0

    def fold(self, weight: Tensor) -> Tensor:
        """Return c W, so that the remaining weights keep the factor c of the training mask."""
        return weight * self.factor

    def train_penalty(self, weight: Tensor) -> Tensor:
        """Return lambda * sum(m)."""
        if not self.method.threshold_decay:
            return weight.new_zeros(())
        return self.soft_mask().sum() * self.method.threshold_decay

    def follow(self, epoch: int, horizon: Horizon) -> None:
        """Set beta = final_temp^(e / (T - 1)) for epoch e of a round of T; final_temp where T is 1."""
        progress = min(epoch / (horizon.epochs - 1), 1.0) if horizon.epochs > 1 else 1.0
        self.beta.fill_(self.method.final_temp**progress)

    @torch.no_grad()
    def on_round_end(self, weight: Tensor) -> None:
        """Set s <- min(beta s, s0), so that weights that were pruned rarely return, and reset beta to 1."""
        self.score.mul_(self.beta).clamp_(max=self.method.threshold_init)
        self.epoch = 0
        self._follow()


@schema("pruning", "cs")
@dataclass(frozen=True)
class CS(PruningMethod):
    """A sigmoid mask with one trained score per weight, which becomes a step function as the temperature falls.

    Pretraining: off. Training: W_eff = m W with m = c sigmoid(beta s) and c = 1 / sigmoid(s0); beta rises geometrically from 1 to ``final_temp`` over
    the epochs of each round, and the loss has the term ``threshold_decay`` * sum(m) over all layers. Between rounds s <- min(beta s, s0) and
    beta <- 1, for every setting of ``rewind``. Fine-tuning: the mask 1[s > 0] is frozen, and c is folded into the weights.

    There is no target: the sparsity results from ``threshold_init`` and ``threshold_decay``. The optimizer's weight decay does not act on the scores.

    Args:
        pruning_method: the method's name in the specification.
        final_temp: beta in the last epoch of a round.
        threshold_init: s0, the initial score: 0 in the paper; about 0.1 gives a denser, and -0.1 a sparser network.
        threshold_decay: lambda, the regularization weight of the mask. The mask is summed over all weights, so lambda is small. A larger value gives
            a higher sparsity.
    """

    decays_thresholds: ClassVar[bool] = True
    rescales: ClassVar[bool] = True

    pruning_method: Literal["cs"] = "cs"
    final_temp: int = setting(200, ge=1)
    threshold_init: float = setting(0.0, ge=-20, le=20)

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> CSPruner:
        """Return the pruner of ``weight``."""
        return CSPruner(self, weight)

    def warnings(self, horizon: Horizon) -> list[str]:
        """Warn if no loss term lowers the scores, or if a round is a single epoch, in which the mask is a step function."""
        found = []
        if not self.threshold_decay:
            found.append("CS.threshold_decay is 0, so no loss term prunes weights and the sparsity cannot be controlled; start with 1e-4")
        if horizon.epochs == 1:
            found.append(
                "CS anneals its mask over the epochs of a round, which has only one: the mask is a step function then; raise training.epochs"
            )
        return found

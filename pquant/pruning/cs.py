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
    """Trainable scores s of one weight, of its shape, and the inverse temperature beta of the round.

    The mask of training is m = c sigmoid(beta s), with c = 1 / sigmoid(s0), so that a round starts with m = 1; the finalized mask is c 1[s > 0].
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
        """Return c W: the factor stays with the survivors."""
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
        """Let s <- min(beta s, s0), which keeps what is pruned far from coming back, and heat up again."""
        self.score.mul_(self.beta).clamp_(max=self.method.threshold_init)
        self.epoch = 0
        self._follow()


@schema("pruning", "cs")
@dataclass(frozen=True)
class CS(PruningMethod):
    """A sigmoid mask with one trained score per weight, which becomes a step function as the temperature falls.

    Pretraining: off. Training: W_eff = m W with m = c sigmoid(beta s) and c = 1 / sigmoid(s0); beta rises geometrically from 1 to ``final_temp`` over
    the epochs of each round, and the loss has ``threshold_decay`` * sum(m) over all layers. Between rounds s <- min(beta s, s0), beta <- 1, whatever
    is rewound. Fine-tuning: the mask 1[s > 0], frozen; c is folded into the weights.

    There is no target: the sparsity follows from ``threshold_init`` and ``threshold_decay``. The optimizer's weight decay spares the scores.

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
        """Return scores for ``weight``."""
        return CSPruner(self, weight)

    def warnings(self, horizon: Horizon) -> list[str]:
        """Warn where nothing pushes weights out, or where the mask never softens."""
        found = []
        if not self.threshold_decay:
            found.append("CS.threshold_decay is 0, so nothing pushes weights out and the sparsity is left to chance; try 1e-4, then less or more")
        if horizon.epochs == 1:
            found.append("CS anneals over the epochs of a round and has only one: its mask is hard from the first step on; raise training.epochs")
        return found

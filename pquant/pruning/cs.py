"""Continuous Sparsification.

P. Savarese, H. Silva, M. Maire, "Winning the Lottery with Continuous Sparsification", NeurIPS 2020, arXiv 1912.04427.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pquant import flat
from pquant.course import Each, InRows
from pquant.flat import apart, laid
from pquant.pruning.group import Group, OnePass, Pruned, addresses, loops
from pquant.pruning.method import PruningMethod
from pquant.pruning.schedule import ScheduledPruner
from pquant.settings import schema, setting
from pquant.training.stage import Horizon


class _SoftMask(InRows):
    """m W with m = c sigmoid(beta s): W gets g m, s gets g W beta m (1 - m / c)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, score: Tensor, beta: Tensor, factor: float) -> Tensor:
        share = torch.sigmoid(beta * score)
        ctx.save_for_backward(weight, share, beta)
        ctx.factor = factor
        return weight * (share * factor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, share, beta = ctx.saved_tensors
        ds = torch.ops.aten.sigmoid_backward((grads[0] * weight).mul_(ctx.factor), share).mul_(beta)
        return grads[0] * (share * ctx.factor), ds, None, None

    @staticmethod
    def forward_in_rows(ctx: Any, parts: Sequence[Tensor], *given: Any) -> Tensor:
        x = flat.whole(parts)
        (scores, ctx.betas, ctx.factor), share, out = given, torch.empty_like(x), torch.empty_like(x)
        loops().scaled(scores.addresses, scores.counts, ctx.betas.addresses, share.data_ptr())
        loops().weighted(x.data_ptr(), share.sigmoid_().data_ptr(), x.numel(), ctx.factor, out.data_ptr())
        ctx.save_for_backward(x, share)
        return out

    @staticmethod
    def backward_in_rows(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
        grad = flat.whole(grads)
        (weight, share), dw, ds = ctx.saved_tensors, torch.empty_like(grad), torch.empty_like(grad)
        seen, factors = flat.addresses(grad, weight, share), (ctx.factor, ctx.betas.addresses)
        loops().weighted_slopes(*seen, ctx.betas.repeats, factors, flat.addresses(dw, ds))
        return dw, ds, None


class CSPruner(ScheduledPruner):
    """Trainable scores s of one weight, of its shape, and the inverse temperature beta of the round.

    The mask of training is m = c sigmoid(beta s), with c = 1 / sigmoid(s0), so that a round starts with m = 1; what is deployed is c 1[s > 0].
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

    def soft(self) -> Each:
        """Return m W."""
        return Each(_SoftMask, (self.score, self.beta), (self.factor,))

    def select(self, weight: Tensor) -> Tensor:
        """Return s > 0."""
        return self.score > 0

    def bake(self, weight: Tensor) -> Tensor:
        """Return c W: the factor stays with the survivors."""
        return weight * self.factor

    def loss(self, weight: Tensor) -> Tensor:
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


class _Sum(torch.autograd.Function):
    """lambda * sum(m), m = c sigmoid(beta s), of all scores."""

    @staticmethod
    def forward(ctx: Any, group: "CSGroup", *scores: Tensor) -> Tensor:
        slopes, result, betas = torch.empty(group.total), torch.empty(()), addresses(group.betas)
        loops().scaled(addresses(scores), group.sizes, betas, slopes.data_ptr())
        loops().sum_and_slopes(slopes.sigmoid_().data_ptr(), group.sizes, betas, group.factor * group.method.threshold_decay, result.data_ptr())
        ctx.group, ctx.slopes = group, slopes
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *apart(ctx.slopes * grads[0], ctx.group.shapes)


class CSGroup(OnePass):
    """The scores of all layers."""

    takes = CSPruner

    def __init__(self, layers: Sequence[Pruned]) -> None:
        super().__init__(layers)
        self.method: CS = self.pruners[0].method
        self.factor: float = self.pruners[0].factor
        self.scores, self.betas = [pruner.score for pruner in self.pruners], [pruner.beta for pruner in self.pruners]
        self.zeros = [torch.zeros(1)] * len(layers)
        self.over = laid(self.shapes, (torch.Size((1,)),) * len(layers))

    def penalty(self) -> Tensor:
        """Return lambda * sum(m)."""
        if not self.method.threshold_decay:
            return self.weights[0].new_zeros(())
        return _Sum.apply(self, *self.scores) if self.looped else super().penalty()

    def masks(self) -> Tensor:
        """Return s > 0."""
        return self.above(self.scores, self.zeros, self.over, "value") if self.looped else super().masks()


@schema("pruning", "cs")
@dataclass(frozen=True)
class CS(PruningMethod):
    """A sigmoid mask with a trained score a weight, hardened as the temperature falls.

    Pretraining: off. Training: W_eff = m W with m = c sigmoid(beta s) and c = 1 / sigmoid(s0); beta rises geometrically from 1 to ``final_temp`` over
    the epochs of each round, and the loss has ``threshold_decay`` * sum(m) over all layers. Between rounds s <- min(beta s, s0), beta <- 1, whatever
    is rewound. Fine-tuning: the mask 1[s > 0], frozen; c is folded into the weights.

    There is no target: the sparsity follows from ``threshold_init`` and ``threshold_decay``. The optimizer's weight decay spares the scores.

    Args:
        pruning_method: the method's name in the specification.
        final_temp: beta in the last epoch of a round.
        threshold_init: s0, where scores start: the paper's integer 0, or about 0.1 for a denser and -0.1 for a sparser network.
        threshold_decay: lambda, the weight of the mask in the loss, a sum over weights, so that it is small; more gives more zeros.
    """

    group: ClassVar[type[Group]] = CSGroup
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

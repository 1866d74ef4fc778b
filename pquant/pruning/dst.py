"""Dynamic Sparse Training: J. Liu, Z. Xu, R. Shi, R. Cheung, H. So, ICLR 2020, arXiv 2005.06870."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from pquant import flat
from pquant.course import Each, InRows
from pquant.flat import apart, end_to_end, laid
from pquant.pruning.group import Group, OnePass, Pruned, addresses, loops
from pquant.pruning.masks import ThresholdType, threshold_shape
from pquant.pruning.method import Pruner, PruningMethod
from pquant.settings import schema, setting
from pquant.training.stage import Stage

ZERO, MINUS_TWO = torch.tensor(0.0), torch.tensor(-2.0)
BEYOND_ONE = 1.0 + torch.finfo(torch.float32).eps


class _StepMask(InRows):
    """W * 1[|W| > t] with the long-tailed estimator of the step's derivative (section 3.2 of the paper).

    dm/dq = 2 - 4|q| for |q| <= 0.4, 0.4 up to 1, 0 beyond, at q = |W| - t. So dW gets g (m + |W| dm/dq) and t gets -sum(g W dm/dq).
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(weight, threshold)
        return weight * torch.heaviside(weight.abs() - threshold, ZERO.to(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        (weight, threshold), grad = ctx.saved_tensors, grads[0]
        magnitude = weight.abs()
        distance = magnitude - threshold
        falling = torch.add(MINUS_TWO, distance.abs(), alpha=4.0).clamp_(max=-0.4)
        falling = torch.ops.aten.hardtanh_backward(falling, distance, -BEYOND_ONE, BEYOND_ONE)
        dw = torch.heaviside(distance, ZERO.to(weight)).sub_(falling * magnitude).mul_(grad)
        return dw, falling.mul_(grad).mul_(weight).sum_to_size(threshold.shape)

    @staticmethod
    def forward_in_rows(ctx: Any, parts: Sequence[Tensor], *given: Any) -> Tensor:
        x = flat.whole(parts)
        (ctx.thresholds,), out = given, torch.empty_like(x)
        ctx.save_for_backward(x)
        loops().step_mask(x.data_ptr(), x.numel(), *ctx.thresholds[:3], out.data_ptr())
        return out

    @staticmethod
    def backward_in_rows(ctx: Any, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        grad = flat.whole(grads)
        (weight,), thresholds = ctx.saved_tensors, ctx.thresholds
        dw, dt = torch.empty_like(weight), torch.empty(thresholds.total)
        loops().step_mask_slopes(grad.data_ptr(), weight.data_ptr(), len(weight), *thresholds, flat.addresses(dw, dt))
        return dw, dt


class DSTPruner(Pruner):
    """Trainable thresholds of one weight, one a channel, a layer or a weight."""

    def __init__(self, method: "DST", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: DST = method
        self.optimizer_options = {"weight_decay": method.threshold_decay}
        shape = threshold_shape(method.threshold_type, weight)
        self.threshold = nn.Parameter(weight.new_full(shape, method.threshold_init))

    def soft(self) -> Each:
        """Return W * 1[|W| > t]."""
        return Each(_StepMask, (self.threshold,))

    def select(self, weight: Tensor) -> Tensor:
        """Return |W| > t."""
        return weight.abs() > self.threshold

    def loss(self, weight: Tensor) -> Tensor:
        """Return alpha * sum(exp(-t)), which pushes thresholds up (equation 6)."""
        return push([self.threshold], self.method.alpha)

    @torch.no_grad()
    def on_batch_end(self, weight: Tensor) -> None:
        """Pull all thresholds of the layer down where the step just made left too little of it; no host sync."""
        if self.stage is not Stage.TRAIN:
            return
        kept = self.select(weight).count_nonzero() > self.method.least(weight)
        if self.method.beyond_max == "reset":
            self.threshold.mul_(kept)
        else:
            highest = weight.abs().flatten().kthvalue(self.method.most(weight)).values
            self.threshold.copy_(torch.where(kept, self.threshold, self.threshold.clamp(max=highest)))


class _Push(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, alpha: float, *thresholds: Tensor) -> Tensor:
        ctx.shapes = tuple(threshold.shape for threshold in thresholds)
        terms = end_to_end(thresholds, ctx.shapes).neg().exp_().mul_(alpha)
        ctx.save_for_backward(terms)
        return terms.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *apart(ctx.saved_tensors[0] * -grads[0], ctx.shapes)


def push(thresholds: Sequence[Tensor], alpha: float) -> Tensor:
    """Return alpha * sum(exp(-t)) over all thresholds."""
    return _Push.apply(alpha, *thresholds)


class _Pushes(torch.autograd.Function):
    """What :func:`push` gives, by loops."""

    @staticmethod
    def forward(ctx: Any, group: "DSTGroup", *thresholds: Tensor) -> Tensor:
        slopes, result = torch.empty(group.over.given_total), torch.empty(())
        loops().negated(addresses(thresholds), group.over.counts, slopes.data_ptr())
        loops().sum_and_negate(slopes.exp_().data_ptr(), group.over.given_total, group.method.alpha, result.data_ptr())
        ctx.group, ctx.slopes = group, slopes
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return None, *apart(ctx.slopes * grads[0], ctx.group.given)


class DSTGroup(OnePass):
    """The thresholds of all layers."""

    takes = DSTPruner

    def __init__(self, layers: Sequence[Pruned]) -> None:
        super().__init__(layers)
        self.method: DST = self.pruners[0].method
        self.thresholds = [pruner.threshold for pruner in self.pruners]
        self.given = tuple(threshold.shape for threshold in self.thresholds)
        self.over = laid(self.shapes, self.given)
        self.least = np.array([self.method.least(weight) for weight in self.weights], np.float32)
        clamps = self.method.beyond_max == "clamp"
        self.most = np.array([self.method.most(weight) if clamps else 0 for weight in self.weights])

    def penalty(self) -> Tensor:
        """Return the push on all thresholds."""
        return _Pushes.apply(self, *self.thresholds) if self.looped else push(self.thresholds, self.method.alpha)

    def follow_step(self) -> None:
        """Pull thresholds down where a layer has too little left."""
        if not self.looped:
            super().follow_step()
            return
        if loops().give_way(addresses(self.weights), addresses(self.thresholds), self.over.counts, self.over.repeats, self.least, self.most):
            torch.autograd.graph.increment_version(self.thresholds)

    def masks(self) -> Tensor:
        """Return |W| > t."""
        return self.above(self.weights, self.thresholds, self.over) if self.looped else super().masks()


@schema("pruning", "dst")
@dataclass(frozen=True)
class DST(PruningMethod):
    """Trainable magnitude thresholds; a pruned weight may come back.

    Pretraining: off. Training: W_eff = W * 1[|W| > t], loss alpha * sum(exp(-t)). Fine-tuning: the last mask, frozen.

    Args:
        pruning_method: the method's name in the specification.
        alpha: weight of the loss that pushes thresholds up, a sum over thresholds, so that weightwise thresholds feel it fan-in times more often;
            more gives more zeros.
        max_pruning_pct: share of a layer that, when pruned, makes its thresholds give way.
        threshold_init: where thresholds start, in units of weights.
        threshold_type: what shares a threshold: a channel, a layer, or each weight has its own.
        beyond_max: how thresholds give way beyond ``max_pruning_pct``: start again from 0, as in the authors' code, or only as far as needed.
    """

    group: ClassVar[type[Group]] = DSTGroup
    decays_thresholds: ClassVar[bool] = True

    pruning_method: Literal["dst"] = "dst"
    alpha: float = setting(5.0e-06, ge=0)
    max_pruning_pct: float = setting(0.99, gt=0, le=1)
    threshold_init: float = 0.0
    threshold_type: ThresholdType = "channelwise"
    beyond_max: Literal["reset", "clamp"] = "reset"

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> DSTPruner:
        """Return thresholds for ``weight``."""
        return DSTPruner(self, weight)

    def least(self, weight: Tensor) -> float:
        """Return how many weights of a layer must be more than."""
        return (1 - self.max_pruning_pct) * weight.numel()

    def most(self, weight: Tensor) -> int:
        """Return how many weights of a layer may be pruned, but at least one."""
        return max(math.ceil(self.max_pruning_pct * weight.numel()) - 1, 1)

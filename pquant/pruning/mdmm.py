"""MDMM, the modified differential method of multipliers: J. Platt, A. Barr, "Constrained Differential Optimization", NIPS 1987.

The constraint is a share of zeros, of weights or of groups as in B. Ramhorst, V. Loncar, G. Constantinides, arXiv 2308.05170. Its gradient is that
of the trimmed Lasso: D. Bertsimas, M. Copenhaver, R. Mazumder, arXiv 1708.04527.
"""

import logging
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.pruning.masks import global_budget, keep_above
from pquant.pruning.method import PrunedWeights, Pruner, PruningMethod
from pquant.settings import schema, setting
from pquant.training.stage import Stage

PROJECTION_GAP = 0.05
log = logging.getLogger(__name__)


class MDMMPruner(Pruner):
    """The constraint on one weight, that ``count`` of its ``groups`` are zero, its Lagrange ``multiplier``, and the ``border`` of what has to go."""

    state: ClassVar[tuple[str, ...]] = ("name", "count")
    multiplier: Tensor
    border: Tensor

    def __init__(self, method: "MDMM", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: MDMM = method
        self.groups = self.sizes(weight.detach()).numel()
        self.name, self.count = "", round(method.target * self.groups)
        self.register_buffer("border", weight.new_full((), -math.inf))
        if method.use_grad:
            self.multiplier = nn.Parameter(weight.new_zeros(()))
            self.optimizer_options = {"weight_decay": 0.0, "lr": method.constraint_lr, "maximize": True}
        else:
            self.register_buffer("multiplier", weight.new_zeros(()))

    def sizes(self, weight: Tensor) -> Tensor:
        """Return |W|; for StructuredSparsity the L2 norms (out, groups) of every ``rf`` consecutive weights of a row, the last filled up with 0."""
        if self.method.metric_type == "UnstructuredSparsity":
            return weight.abs()
        rows = weight.flatten(1)
        return torch.linalg.vector_norm(F.pad(rows, (0, -rows.shape[1] % self.method.rf)).unflatten(1, (-1, self.method.rf)), dim=2)

    def metric(self, weight: Tensor) -> Tensor:
        """Return the share of zeros, whose derivative is that of -T_k(s) / sum(s), straight through.

        T_k is the sum of the k smallest sizes s, those up to the border: 0 exactly when k groups are 0 (the trimmed Lasso). So what has to go for the
        target to be met is pulled, all of it with the same force, and what stays is not shrunk.
        """
        sizes = self.sizes(weight)
        trimmed = -(sizes * (sizes <= self.border)).sum() / sizes.detach().sum().clamp(min=1e-12)
        return self.method.share(sizes.detach()) + (trimmed - trimmed.detach())

    def excess(self, share: Tensor) -> Tensor:
        """Return share - target, or target - share for GreaterThanOrEqual: an inequality is met where it is not positive."""
        return self.method.side * (share - self.count / self.groups)

    def infeasibility(self, weight: Tensor) -> Tensor:
        """Return h: the excess, of an inequality at least -lambda / damping: in h = excess + z^2 the slack z takes up what is below."""
        excess = self.excess(self.metric(weight))
        if self.method.constraint_type == "Equality" or not self.method.damping:
            return excess
        return torch.maximum(excess, -self.multiplier / self.method.damping)

    def train_penalty(self, weight: Tensor) -> Tensor:
        """Return scale * (lambda h + damping h^2 / 2), times the number of groups with scale_mode "sum".

        lambda itself rises by scale * h, whatever the number of groups, as it does without ``use_grad``.
        """
        h = self.infeasibility(weight)
        once = self.multiplier * (self.method.scale / self.scale) if self.scale else self.multiplier
        multiplier = once + (self.multiplier - once).detach()
        return self.scale * h * (multiplier + self.method.damping / 2 * h)

    @property
    def scale(self) -> float:
        """The weight of the constraint in the loss."""
        return self.method.scale * (self.groups if self.method.scale_mode == "sum" else 1)

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Take the border of ``weight``, the size of its ``count``-th smallest group."""
        if self.count:
            self.border.copy_(self.sizes(weight).flatten().kthvalue(self.count).values)
        else:
            self.border.fill_(-math.inf)

    @torch.no_grad()
    def on_batch_end(self, weight: Tensor) -> None:
        """Raise the multiplier by constraint_lr * scale * h, where the optimizer does not; keep that of an inequality non-negative."""
        if self.stage is not Stage.TRAIN:
            return
        if not self.method.use_grad:
            self.multiplier.add_(self.infeasibility(weight) * (self.method.constraint_lr * self.method.scale))
        if self.method.constraint_type != "Equality":
            self.multiplier.clamp_(min=0)
        self.measure(weight)

    def on_round_end(self, weight: Tensor) -> None:
        """Follow the weights where they were put back."""
        self.measure(weight)

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return the weight as it is: training is dense."""
        return weight

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return what is larger than epsilon; where that misses the target by less than 5 points, exactly the target's number of largest."""
        sizes = self.sizes(weight)
        keep = sizes > self.method.epsilon
        if self.method.project:
            gap = self.gap(sizes)
            keep = torch.where((gap > 0) & (gap < PROJECTION_GAP), keep_above(sizes, self.border, self.groups - self.count), keep)
        return self._spread(keep, weight)

    def _spread(self, keep: Tensor, weight: Tensor) -> Tensor:
        """Return for each weight what ``keep`` says of its group."""
        if self.method.metric_type == "UnstructuredSparsity":
            return keep
        return keep.repeat_interleave(self.method.rf, 1)[:, : weight[0].numel()].reshape(weight.shape)

    def gap(self, sizes: Tensor) -> Tensor:
        """Return by what share the sizes above epsilon miss the constraint, 0 where they meet it."""
        excess = self.excess((sizes <= self.method.epsilon).float().mean())
        return excess.abs() if self.method.constraint_type == "Equality" else excess.clamp(min=0)

    def freeze(self, weight: Tensor) -> Tensor:
        """Freeze the mask, and log how far from its target training ended."""
        gap = float(self.gap(self.sizes(weight.detach()))) if self.stage is Stage.TRAIN else 0.0
        if gap:
            near = gap < PROJECTION_GAP and self.method.project
            target = f"MDMM: training left layer '{self.name}' {100 * gap:.2f} points from its target sparsity of {self.count / self.groups:.4f}"
            log.log(logging.INFO if near else logging.WARNING, "%s; %s", target, "projected to it" if near else "not projected to it")
        return super().freeze(weight)


@schema("pruning", "mdmm")
@dataclass(frozen=True)
class MDMM(PruningMethod):
    """Gradient descent on the weights and gradient ascent on a Lagrange multiplier, until the sparsity equals its target.

    Pretraining: off. Training: dense weights; each layer adds the loss scale * (lambda h + damping h^2 / 2), h the violation of its constraint, and
    after each step lambda += constraint_lr * scale * h. Fine-tuning: the mask |W| > ``epsilon``, frozen.

    As training begins, one magnitude threshold over all layers shares the target out. With Equality lambda takes both signs, with the inequalities it
    stays non-negative. SGD follows the loss's scale, Adam does not: with SGD, weights that swing about 0 by more than ``epsilon`` ask for a smaller
    ``scale``.

    Args:
        pruning_method: the method's name in the specification.
        constraint_type: whether the sparsity is to be equal to the target, at most the target, or at least the target.
        target_value: the target; 0: ``target_sparsity`` is the target.
        metric_type: sparsity of single weights, or of groups of ``rf`` consecutive weights of a row, which count as zero if their L2 norm is at most
            ``epsilon``.
        target_sparsity: the target if ``target_value`` is 0.
        rf: number of weights in a group (hls4ml's reuse factor), for StructuredSparsity.
        epsilon: a weight, or the norm of a group, counts as zero up to this magnitude.
        scale: weight of the constraint in the loss; lambda grows in proportion to it.
        damping: weight of the quadratic term, which prevents oscillations of lambda.
        use_grad: whether lambda is a parameter that the optimizer updates by gradient ascent, with learning rate ``constraint_lr``.
        l0_mode: whether zeros are counted by a step function ("coarse") or by a smooth one ("smooth").
        scale_mode: "sum" multiplies the loss of a layer by its number of weights or groups, so that the gradient of a weight does not depend on the
            size of the layer.
        constraint_lr: learning rate of lambda.
        project: whether a mask that misses its target by less than 5 percentage points is set to exactly the target; the log says so.
    """

    pruning_method: Literal["mdmm"] = "mdmm"
    constraint_type: Literal["Equality", "LessThanOrEqual", "GreaterThanOrEqual"] = "Equality"
    target_value: float = setting(0.0, ge=0, le=1)
    metric_type: Literal["UnstructuredSparsity", "StructuredSparsity"] = "UnstructuredSparsity"
    target_sparsity: float = setting(0.9, ge=0, le=1)
    rf: int = setting(1, ge=1)
    epsilon: float = setting(1.0e-03, gt=0)
    scale: float = setting(10.0, ge=0)
    damping: float = setting(1.0, ge=0)
    use_grad: bool = False
    l0_mode: Literal["coarse", "smooth"] = "coarse"
    scale_mode: Literal["mean", "sum"] = "mean"
    constraint_lr: float = setting(1.0e-03, ge=0)
    project: bool = True

    @property
    def target(self) -> float:
        """The share of zeros that the constraint compares with."""
        return self.target_value or self.target_sparsity

    @property
    def goal(self) -> float | None:
        """The target, if it bounds the share of single weights that are zero from below."""
        bounds = self.constraint_type != "LessThanOrEqual" and self.metric_type == "UnstructuredSparsity"
        return self.target if bounds else None

    @property
    def side(self) -> int:
        """The sign with which zeros beyond the target count."""
        return -1 if self.constraint_type == "GreaterThanOrEqual" else 1

    def share(self, sizes: Tensor) -> Tensor:
        """Return the share of zeros, sizes up to epsilon; l0_mode "smooth" counts a size s as 2^-(s / epsilon)^2."""
        if self.l0_mode == "coarse":
            return (sizes.abs() <= self.epsilon).to(sizes.dtype).mean()
        return torch.exp2(-(sizes / self.epsilon).square()).mean()

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> MDMMPruner:
        """Return the constraint on ``weight``."""
        return MDMMPruner(self, weight)

    def prepare(self, layers: PrunedWeights) -> None:
        """Give each layer its share of the target."""
        counts = global_budget({name: (pruner, pruner.sizes(weight)) for name, (pruner, weight) in layers.items()}, self.target)  # type: ignore[operator]
        for name, (pruner, _) in layers.items():
            pruner.name, pruner.count = name, counts[name]  # type: ignore[assignment]
            pruner.measure(layers[name][1])  # type: ignore[operator]

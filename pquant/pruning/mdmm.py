"""MDMM, the modified differential method of multipliers: J. Platt, A. Barr, "Constrained Differential Optimization", NIPS 1987.

The constraint is on the sparsity of weights, or of groups of weights as in B. Ramhorst, V. Loncar, G. Constantinides, arXiv 2308.05170. Its gradient
is that of the trimmed Lasso: D. Bertsimas, M. Copenhaver, R. Mazumder, arXiv 1708.04527.
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
    """The constraint that ``count`` of the ``groups`` of one weight tensor are zero, and its Lagrange ``multiplier``.

    Three buffers are measured after each step: ``border`` is the size of the ``count``-th smallest group, and groups up to it are to become zero;
    ``total`` is the sum of all sizes, and ``sparsity`` the fraction of groups that count as zero.
    """

    state: ClassVar[tuple[str, ...]] = ("name", "count")
    multiplier: Tensor
    border: Tensor
    total: Tensor
    sparsity: Tensor

    def __init__(self, method: "MDMM", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: MDMM = method
        self.groups = self.sizes(weight.detach()).numel()
        self.name, self.count = "", round(method.target * self.groups)
        self.register_buffer("border", weight.new_full((), -math.inf))
        self.register_buffer("total", weight.new_ones(()))
        self.register_buffer("sparsity", weight.new_zeros(()))
        if method.use_grad:
            self.multiplier = nn.Parameter(weight.new_zeros(()))
            self.optimizer_options = {"weight_decay": 0.0, "lr": method.constraint_lr, "maximize": True}
        else:
            self.register_buffer("multiplier", weight.new_zeros(()))

    def sizes(self, weight: Tensor) -> Tensor:
        """Return |W|; for StructuredSparsity the L2 norms (out, groups) of every ``rf`` consecutive weights of a row, padded with 0."""
        if self.method.metric_type == "UnstructuredSparsity":
            return weight.abs()
        rows = weight.flatten(1)
        return torch.linalg.vector_norm(F.pad(rows, (0, -rows.shape[1] % self.method.rf)).unflatten(1, (-1, self.method.rf)), dim=2)

    def metric(self, weight: Tensor) -> Tensor:
        """Return the measured sparsity, with the gradient of -T_k(s) / sum(s), where sum(s) is the measured constant.

        T_k is the sum of the k smallest sizes s, those up to the border. It is 0 exactly when k groups are 0 (the trimmed Lasso). Thus only the
        groups that must become zero to meet the target are shrunk, all at the same rate.
        """
        sizes = self.sizes(weight)
        trimmed = (sizes * (sizes <= self.border)).sum() / self.total
        return self.sparsity + (trimmed.detach() - trimmed)

    def excess(self, share: Tensor) -> Tensor:
        """Return sparsity - target, or target - sparsity for GreaterThanOrEqual. An inequality is met if the result is at most 0."""
        return self.method.side * (share - self.count / self.groups)

    def infeasibility(self, share: Tensor) -> Tensor:
        """Return h, the excess; for an inequality at least -lambda / damping, which is h = excess + z^2 for the optimal slack z."""
        excess = self.excess(share)
        if self.method.constraint_type == "Equality" or not self.method.damping:
            return excess
        return torch.maximum(excess, -self.multiplier / self.method.damping)

    def train_penalty(self, weight: Tensor) -> Tensor:
        """Return scale * (lambda h + damping h^2 / 2), times the number of groups with scale_mode "sum".

        The gradient with respect to lambda is scale * h for every number of groups, as in the update without ``use_grad``.
        """
        h = self.infeasibility(self.metric(weight))
        multiplier = self.multiplier
        if self.method.use_grad and self.scale:
            once = multiplier * (self.method.scale / self.scale)
            multiplier = once + (multiplier - once).detach()
        return self.scale * h * (multiplier + self.method.damping / 2 * h)

    @property
    def scale(self) -> float:
        """The weight of the constraint in the loss."""
        return self.method.scale * (self.groups if self.method.scale_mode == "sum" else 1)

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Measure the border, the total and the sparsity of ``weight``."""
        sizes = self.sizes(weight)
        self.total.copy_(sizes.sum()).clamp_(min=1e-12)
        self.sparsity.copy_(self.method.share(sizes))
        if self.count:
            self.border.copy_(sizes.flatten().kthvalue(self.count).values)
        else:
            self.border.fill_(-math.inf)

    @torch.no_grad()
    def on_batch_end(self, weight: Tensor) -> None:
        """Measure, and add constraint_lr * scale * h to the multiplier, unless the optimizer updates it; clamp it at 0 for inequalities."""
        if self.stage is not Stage.TRAIN:
            return
        self.measure(weight)
        if not self.method.use_grad:
            self.multiplier.add_(self.infeasibility(self.sparsity), alpha=self.method.constraint_lr * self.method.scale)
        if self.method.constraint_type != "Equality":
            self.multiplier.clamp_(min=0)

    def on_round_end(self, weight: Tensor) -> None:
        """Measure again, since the weights may have been rewound."""
        self.measure(weight)

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return the weight unchanged, since training is dense."""
        return weight

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return the mask of sizes above epsilon. With ``project``, a mask less than 5 percentage points off the target is set to the target."""
        sizes = self.sizes(weight)
        keep = sizes > self.method.epsilon
        if self.method.project:
            gap = self.gap(sizes)
            keep = torch.where((gap > 0) & (gap < PROJECTION_GAP), keep_above(sizes, self.border, self.groups - self.count), keep)
        return self._spread(keep, weight)

    def _spread(self, keep: Tensor, weight: Tensor) -> Tensor:
        """Return the mask of the weights from the mask ``keep`` of their groups."""
        if self.method.metric_type == "UnstructuredSparsity":
            return keep
        return keep.repeat_interleave(self.method.rf, 1)[:, : weight[0].numel()].reshape(weight.shape)

    def gap(self, sizes: Tensor) -> Tensor:
        """Return how far the sparsity at epsilon is from meeting the constraint, as a fraction; 0 where it is met."""
        excess = self.excess((sizes <= self.method.epsilon).float().mean())
        return excess.abs() if self.method.constraint_type == "Equality" else excess.clamp(min=0)

    def freeze(self, weight: Tensor) -> Tensor:
        """Freeze the mask, and log the distance of the sparsity from its target."""
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

    Pretraining: off. Training: dense weights; each layer adds the loss scale * (lambda h + damping h^2 / 2), where h is the violation of its
    constraint, and after each step lambda += constraint_lr * scale * h. Fine-tuning: the mask |W| > ``epsilon`` (see ``project``) is frozen.

    At the start of the train stage, one magnitude threshold over all layers determines the target of each layer. lambda takes both signs with
    Equality, and stays non-negative with the inequalities. Steps of SGD scale with the loss, steps of Adam do not: with SGD, if weights oscillate
    around 0 by more than ``epsilon``, use a smaller ``scale``.

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
        """The target sparsity of the constraint."""
        return self.target_value or self.target_sparsity

    @property
    def goal(self) -> float | None:
        """The target, if it is a lower bound of the sparsity of single weights; else None."""
        bounds = self.constraint_type != "LessThanOrEqual" and self.metric_type == "UnstructuredSparsity"
        return self.target if bounds else None

    @property
    def side(self) -> int:
        """The sign of the excess for a sparsity above the target."""
        return -1 if self.constraint_type == "GreaterThanOrEqual" else 1

    def share(self, sizes: Tensor) -> Tensor:
        """Return the fraction of sizes up to epsilon; l0_mode "smooth" counts each size s as 2^-(s / epsilon)^2 instead."""
        if self.l0_mode == "coarse":
            return (sizes <= self.epsilon).to(sizes.dtype).mean()
        return torch.exp2(-(sizes / self.epsilon).square()).mean()

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> MDMMPruner:
        """Return the pruner of ``weight``."""
        return MDMMPruner(self, weight)

    def prepare(self, layers: PrunedWeights) -> None:
        """Set the target of each layer."""
        counts = global_budget({name: (pruner, pruner.sizes(weight)) for name, (pruner, weight) in layers.items()}, self.target)  # type: ignore[operator]
        for name, (pruner, _) in layers.items():
            pruner.name, pruner.count = name, counts[name]  # type: ignore[assignment]
            pruner.measure(layers[name][1])  # type: ignore[operator]

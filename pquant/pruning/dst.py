"""Dynamic Sparse Training: J. Liu, Z. Xu, R. Shi, R. Cheung, H. So, ICLR 2020, arXiv 2005.06870."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from pquant.autograd import with_signature
from pquant.pruning.masks import ThresholdType, threshold_shape
from pquant.pruning.method import Pruner, PruningMethod
from pquant.settings import schema, setting
from pquant.training.stage import Stage


class _Step(torch.autograd.Function):
    """1[q > 0] with the long-tailed estimator of its derivative (section 3.2): 2 - 4|q| for |q| <= 0.4, 0.4 for |q| <= 1, else 0."""

    generate_vmap_rule = True

    @staticmethod
    @with_signature
    def forward(q: Tensor) -> Tensor:
        return q.sign().clamp_(min=0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        size = ctx.saved_tensors[0].abs()
        return grad * (2 - 4 * size).clamp_(min=0.4) * size.le_(1)


class DSTPruner(Pruner):
    """Trainable thresholds of one weight tensor: one per channel, layer or weight."""

    def __init__(self, method: "DST", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: DST = method
        self.optimizer_options = {"weight_decay": method.threshold_decay}
        shape = threshold_shape(method.threshold_type, weight)
        self.threshold = nn.Parameter(weight.new_full(shape, method.threshold_init))

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return W * 1[|W| > t]."""
        return weight * _Step.apply(weight.abs() - self.threshold)

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return |W| > t."""
        return weight.abs() > self.threshold

    def train_penalty(self, weight: Tensor) -> Tensor:
        """Return alpha * sum(exp(-t)), whose gradient raises the thresholds (equation 6)."""
        return self.method.alpha * torch.exp(-self.threshold).sum()

    @torch.no_grad()
    def on_batch_end(self, weight: Tensor) -> None:
        """Reset the thresholds of the layer if ``max_pruning_pct`` of its weights or more are pruned, without waiting for the GPU."""
        if self.stage is not Stage.TRAIN:
            return
        enough = self.train_mask(weight).sum() > (1 - self.method.max_pruning_pct) * weight.numel()
        if self.method.beyond_max == "reset":
            self.threshold.mul_(enough)
        else:
            most = max(math.ceil(self.method.max_pruning_pct * weight.numel()) - 1, 1)
            highest = weight.abs().flatten().kthvalue(most).values
            self.threshold.copy_(torch.where(enough, self.threshold, self.threshold.clamp(max=highest)))


@schema("pruning", "dst")
@dataclass(frozen=True)
class DST(PruningMethod):
    """Trained magnitude thresholds; a pruned weight can grow above its threshold again.

    Pretraining: off. Training: W_eff = W * 1[|W| > t], loss alpha * sum(exp(-t)). Fine-tuning: the last mask is frozen.

    Args:
        pruning_method: the method's name in the specification.
        alpha: weight of the loss term that increases the thresholds: a larger value gives a higher sparsity. The term is a sum over thresholds, so
            with weightwise thresholds it is larger by a factor of the fan-in.
        max_pruning_pct: if at least this fraction of a layer is pruned, its thresholds are reset.
        threshold_init: initial threshold, in units of weights.
        threshold_type: which weights share a threshold: those of a channel, those of a layer, or each weight has its own.
        beyond_max: how thresholds are reset: to 0, as in the authors' code ("reset"), or to the highest values that ``max_pruning_pct`` allows
            ("clamp").
    """

    decays_thresholds: ClassVar[bool] = True

    pruning_method: Literal["dst"] = "dst"
    alpha: float = setting(5.0e-06, ge=0)
    max_pruning_pct: float = setting(0.99, gt=0, le=1)
    threshold_init: float = 0.0
    threshold_type: ThresholdType = "channelwise"
    beyond_max: Literal["reset", "clamp"] = "reset"

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> DSTPruner:
        """Return the pruner of ``weight``."""
        return DSTPruner(self, weight)

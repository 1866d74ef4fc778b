"""Magnitude pruning in one shot: S. Han, J. Pool, J. Tran, W. Dally, "Learning both Weights and Connections", NeurIPS 2015, arXiv 1506.02626."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pquant.pruning.masks import global_budget, keep_largest, uniform_budget
from pquant.pruning.method import PrunedWeights, Pruner, PruningMethod
from pquant.settings import schema, setting


class MagnitudePruner(Pruner):
    """A mask that is computed once."""

    state: ClassVar[tuple[str, ...]] = ("pruned",)

    def __init__(self, method: "Magnitude", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.pruned = False

    @torch.no_grad()
    def prune(self, weight: Tensor, count: int) -> None:
        """Compute the mask, which prunes the ``count`` weights of smallest |W|."""
        if not self.pruned:
            self.mask.copy_(keep_largest(weight.abs(), count))
            self.pruned = True


@schema("pruning", "magnitude")
@dataclass(frozen=True)
class Magnitude(PruningMethod):
    """Prunes the weights with the smallest magnitude at the start of the train stage, and trains the others.

    Pretraining: off. Training: the weights with the smallest |W| are masked at the start. Fine-tuning: the same mask.

    Args:
        pruning_method: the method's name.
        sparsity: fraction of the weights that is pruned.
        budget: whether ``sparsity`` holds for all layers together ("global") or for each layer ("uniform").
    """

    pruning_method: Literal["magnitude"] = "magnitude"
    sparsity: float = setting(0.8, ge=0, le=1)
    budget: Literal["global", "uniform"] = "global"

    @property
    def goal(self) -> float:
        """The sparsity."""
        return self.sparsity

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> MagnitudePruner:
        """Return the pruner of ``weight``."""
        return MagnitudePruner(self, weight)

    def prepare(self, layers: PrunedWeights) -> None:
        """Compute the mask of every layer."""
        counts = (global_budget if self.budget == "global" else uniform_budget)(layers, self.sparsity)
        for name, (pruner, weight) in layers.items():
            pruner.prune(weight, counts[name])  # type: ignore[operator]

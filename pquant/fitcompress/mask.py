"""Pruning by masks that the search sets."""

from dataclasses import dataclass

from torch import Tensor, nn

from pquant.pruning.method import Pruner, PruningMethod


@dataclass(frozen=True)
class SearchedMask(PruningMethod):
    """Pruning by the masks of the search. Nothing is pruned in pretraining; then the search sets the mask of each pruner, which does not change."""

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Pruner:
        """Return a pruner whose mask keeps everything until it is set."""
        return Pruner(self, weight)

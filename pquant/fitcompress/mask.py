"""Pruning by masks that something else makes."""

from dataclasses import dataclass

from torch import Tensor, nn

from pquant.pruning.method import Pruner, PruningMethod


@dataclass(frozen=True)
class SearchedMask(PruningMethod):
    """The masks of the search: nothing is pruned in pretraining, then the search sets each pruner's mask, and it stays."""

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Pruner:
        """Return a pruner whose mask keeps everything until it is set."""
        return Pruner(self, weight)

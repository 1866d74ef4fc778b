"""Pruning: one file a method, each beside its paper."""

from pquant.pruning.dst import DST
from pquant.pruning.method import NoPruner, NoPruning, PrunedWeights, Pruner, PruningMethod
from pquant.pruning.wanda import Wanda

__all__ = ["DST", "NoPruner", "NoPruning", "PrunedWeights", "Pruner", "PruningMethod", "Wanda"]

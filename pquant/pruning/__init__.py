"""Pruning: one file a method, each beside its paper."""

from pquant.pruning.autosparse import AutoSparse
from pquant.pruning.cs import CS
from pquant.pruning.dst import DST
from pquant.pruning.method import NoPruner, NoPruning, PrunedWeights, Pruner, PruningMethod
from pquant.pruning.pdp import PDP
from pquant.pruning.wanda import Wanda

__all__ = ["CS", "DST", "PDP", "AutoSparse", "NoPruner", "NoPruning", "PrunedWeights", "Pruner", "PruningMethod", "Wanda"]

"""Pruning methods, one per file."""

from pquant.pruning.activation import ActivationPruning
from pquant.pruning.autosparse import AutoSparse
from pquant.pruning.cs import CS
from pquant.pruning.dst import DST
from pquant.pruning.magnitude import Magnitude
from pquant.pruning.mdmm import MDMM
from pquant.pruning.method import NoPruner, NoPruning, PrunedWeights, Pruner, PruningMethod
from pquant.pruning.pdp import PDP
from pquant.pruning.wanda import Wanda

__all__ = [
    "CS",
    "DST",
    "MDMM",
    "PDP",
    "ActivationPruning",
    "AutoSparse",
    "Magnitude",
    "NoPruner",
    "NoPruning",
    "PrunedWeights",
    "Pruner",
    "PruningMethod",
    "Wanda",
]

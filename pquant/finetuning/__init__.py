"""Hyperparameter studies: Optuna through Hydra's sweeper."""

from pquant.finetuning.finetuning import FineTuning, HyperparameterSearch, Sampler

__all__ = ["FineTuning", "HyperparameterSearch", "Sampler"]

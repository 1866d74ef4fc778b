"""The plugin that ``hydra/sweeper=study`` names; what it does is imported when a study starts, so that a single run pays nothing."""

from typing import Any

from hydra.utils import instantiate
from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig


class StudySweeper(OptunaSweeper):
    """Hydra's Optuna sweeper for a study that goes on where it stopped, can be shared by processes, and whose trials talk to it.

    Args:
        sampler: the node of a sampler with ``_partial_``.
        settings: all else of ``conf/hydra/sweeper/study.yaml``.
    """

    def __init__(self, sampler: DictConfig, **settings: Any) -> None:
        from pquant.finetuning.sweep import StudySweep

        self.sweeper = StudySweep(sampler=instantiate(sampler, _execution_whitelist_=("optuna.samplers.*",)), **settings)

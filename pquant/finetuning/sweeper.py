"""The plugin that ``hydra/sweeper=study`` names; it imports Optuna only when a study starts, so that single runs start faster."""

from typing import Any

from hydra_plugins.hydra_optuna_sweeper.optuna_sweeper import OptunaSweeper
from omegaconf import DictConfig

from pquant.targets import build


class StudySweeper(OptunaSweeper):
    """Hydra's Optuna sweeper for studies that resume, that several processes can share, and whose trials report every epoch.

    Args:
        sampler: the node of a sampler with ``_partial_``.
        settings: the other keys of ``conf/hydra/sweeper/study.yaml``.
    """

    def __init__(self, sampler: DictConfig, **settings: Any) -> None:
        from pquant.finetuning.sweep import StudySweep

        self.sweeper = StudySweep(sampler=build("sampler", sampler), **settings)

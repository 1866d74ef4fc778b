"""One job seen from the study: a trial that reports its epochs and tells its end, or a run of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pquant.errors import ConfigError
from pquant.finetuning.objectives import validation_metric
from pquant.training.training import total_epochs

Row = dict[str, Any]
Work = Callable[[Callable[[Row], None], bool], dict[str, Any]]
"""Runs the job, calling its first argument after every epoch, from the last checkpoint if its second one says so; returns the summary's figures."""


class Job(Protocol):
    """What a job is to a study."""

    def conduct(self, work: Work) -> list[float] | float | None:
        """Do the work; return what is optimized."""
        ...


class SingleRun:
    """A job that is no trial."""

    def conduct(self, work: Work) -> float | None:
        """Do the work; return the validation metric."""
        return validation_metric(work(lambda row: None, False))


def this_job(config: DictConfig) -> Job:
    """Return what the job that Hydra runs is: a trial of a study, or a run of its own.

    Raises:
        ConfigError: ``finetuning`` describes a study, but this is a single run.
    """
    hydra = HydraConfig.get()
    if "objectives" in hydra.sweeper and hydra.mode is RunMode.MULTIRUN:
        from pquant.finetuning.trial import StudyTrial

        return StudyTrial(hydra.sweeper, Path(hydra.runtime.output_dir), total_epochs(config.training))
    if config.finetuning.num_trials and config.resume is None:
        raise ConfigError(f"finetuning.num_trials = {config.finetuning.num_trials} is a study: choose a sampler and use -m, as in -m finetuning=tpe")
    return SingleRun()

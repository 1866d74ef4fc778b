"""The kind of the current Hydra job: a trial of a study or a single run."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from pquant.errors import ConfigError
from pquant.finetuning.job import Job, SingleRun
from pquant.training.training import total_epochs


def current_job(config: DictConfig) -> Job:
    """Return the job that Hydra runs: a trial of a study, or a single run.

    Raises:
        ConfigError: ``finetuning`` describes a study, but this is a single run.
    """
    hydra = HydraConfig.get()
    if "objectives" in (hydra.sweeper or {}) and hydra.mode is RunMode.MULTIRUN:
        from pquant.finetuning.trial import StudyTrial  # imports Optuna, which a single run does not need

        return StudyTrial(hydra.sweeper, Path(hydra.runtime.output_dir), total_epochs(config.training))
    if config.finetuning.num_trials > 0 and config.resume is None:
        raise ConfigError(f"finetuning.num_trials = {config.finetuning.num_trials} is a study: choose a sampler and use -m, as in -m finetuning=tpe")
    return SingleRun()

"""One job seen from the study: a trial that reports its epochs and tells its end, or a run of its own."""

import logging
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pquant.errors import ConfigError, StoppedEarly
from pquant.finetuning.gpu import own_gpu
from pquant.finetuning.objectives import validation_metric
from pquant.tracking.files import plain
from pquant.training.training import total_epochs

if TYPE_CHECKING:
    from optuna.trial import Trial

log = logging.getLogger(__name__)

Row = dict[str, Any]
Work = Callable[[Callable[[Row], None], bool], dict[str, Any]]
"""Runs the job, calling its first argument after every epoch, from the last checkpoint if its second one says so; returns the summary's figures."""


class Job(Protocol):
    """What a job is to a study."""

    def conduct(self, work: Work) -> list[float] | float | None:
        """Do the work; return what is optimized."""
        ...


def this_job(config: DictConfig) -> Job:
    """Return what the job that Hydra runs is: a trial of a study, or a run of its own.

    Raises:
        ConfigError: ``finetuning`` describes a study, but this is a single run.
    """
    hydra = HydraConfig.get()
    if "objectives" in hydra.sweeper and hydra.mode is RunMode.MULTIRUN:
        return StudyTrial(hydra.sweeper, Path(hydra.runtime.output_dir), total_epochs(config.training))
    if config.finetuning.num_trials and config.resume is None:
        raise ConfigError(f"finetuning.num_trials = {config.finetuning.num_trials} is a study: choose a sampler and use -m, as in -m finetuning=tpe")
    return SingleRun()


class SingleRun:
    """A job that is no trial."""

    def conduct(self, work: Work) -> float | None:
        """Do the work; return the validation metric."""
        return validation_metric(work(lambda row: None, False))


class StudyTrial:
    """A trial of a study, which it knows by its storage alone, so that it may run in any process that reaches it.

    Args:
        sweeper: the node ``hydra.sweeper``.
        folder: the trial's folder, whose name is the trial's number.
        epochs: how many the job has.
    """

    def __init__(self, sweeper: DictConfig, folder: Path, epochs: int) -> None:
        self.sweeper, self.folder, self.number, self.epochs = sweeper, folder, int(folder.name), epochs
        self.objectives = [str(name) for name in sweeper.objectives]
        self.seconds = 0.0

    def conduct(self, work: Work) -> list[float] | None:
        """Do the work and tell the study how it ended; None when it failed to give every objective, was stopped early or is done elsewhere."""
        from filelock import Timeout

        from pquant.finetuning.claims import trial_lock

        try:
            with trial_lock(self.folder.parent, self.number), own_gpu(self.folder.parent):
                return self._conduct(work)
        except Timeout:
            log.warning("trial %d already runs in another process", self.number)
            return None

    def _conduct(self, work: Work) -> list[float] | None:
        if self.trial.study.get_trials(deepcopy=False)[self.number].state.is_finished():
            log.warning("trial %d is finished already", self.number)
            return None
        try:
            figures = work(self.report, (self.folder / "checkpoint.pt").is_file())
        except StoppedEarly as stop:
            log.info("trial %d: %s", self.number, stop)
            self._tell("PRUNED")
            return None
        except Exception as error:
            self._fail(f"{type(error).__name__}: {' '.join(str(error).split())}")
            raise
        return self._complete(plain(figures))

    def report(self, row: Row) -> None:
        """Tell the study the first objective after an epoch.

        Raises:
            StoppedEarly: the trial is hopeless.
        """
        self.seconds += row["seconds"]
        value = row.get(self.objectives[0])
        if value is None or len(self.objectives) > 1 or row["epoch"] >= self.epochs:
            return
        self.trial.report(value, row["epoch"] - 1)
        if self.trial.should_prune():
            saved = self.seconds / row["epoch"] * (self.epochs - row["epoch"])
            self.trial.set_user_attr("seconds_saved", saved)
            raise StoppedEarly(f"stopped after epoch {row['epoch']} of {self.epochs} with {self.objectives[0]} = {value:.4g}")

    def _complete(self, figures: Mapping[str, Any]) -> list[float] | None:
        numbers = {name: value for name, value in figures.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
        bounds = OmegaConf.to_container(self.sweeper.constraints, resolve=True)
        assert isinstance(bounds, dict)
        missing = [name for name in (*self.objectives, *map(str, bounds)) if not math.isfinite(numbers.get(name, math.nan))]
        self.trial.set_user_attr("figures", numbers)
        if missing:
            self._fail(f"no finite {', '.join(missing)} in the summary; its figures: {', '.join(numbers)}")
            return None
        for name, bound in bounds.items():
            self.trial.set_constraint(name, numbers[name] - bound)
        values = [float(numbers[name]) for name in self.objectives]
        self._tell("COMPLETE", values)
        return values

    def _fail(self, reason: str) -> None:
        from pquant.finetuning.claims import FAILURE

        log.warning("trial %d failed: %s", self.number, reason)
        self.trial.set_user_attr(FAILURE, reason)
        self._tell("FAIL")

    def _tell(self, state: str, values: list[float] | None = None) -> None:
        from optuna.trial import TrialState

        self.trial.set_user_attr("seconds", self.seconds)
        self.trial.study.tell(self.number, values, TrialState[state])

    @cached_property
    def trial(self) -> "Trial":
        """The trial in the storage; its study has a sampler that draws nothing."""
        import optuna

        from pquant.finetuning.study import storage

        store = storage(self.sweeper.storage, self.folder.parent)
        pruner = instantiate(self.sweeper.pruner, _execution_whitelist_=("optuna.pruners.*",)) if self.sweeper.pruner else optuna.pruners.NopPruner
        study = optuna.load_study(study_name=self.sweeper.study_name, storage=store, sampler=optuna.samplers.RandomSampler(), pruner=pruner())
        return optuna.Trial(study, study.get_trials(deepcopy=False)[self.number]._trial_id)

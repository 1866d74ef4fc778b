"""A trial, from inside its job: it reports its epochs to the study and tells how it ended."""

import logging
import math
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from filelock import Timeout
from omegaconf import DictConfig
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from pquant.errors import StoppedEarly
from pquant.finetuning.gpu import own_gpu
from pquant.finetuning.job import Row, Work
from pquant.finetuning.study import pruner, storage
from pquant.finetuning.trial_locks import FAILURE, said, trial_lock
from pquant.resume import CHECKPOINT
from pquant.tracking.files import plain
from pquant.training.checkpoint import has_checkpoint

log = logging.getLogger(__name__)


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
            figures = work(self.report, has_checkpoint(self.folder / CHECKPOINT))
        except StoppedEarly as stop:
            log.info("trial %d: %s", self.number, stop)
            self._tell(TrialState.PRUNED)
            return None
        except Exception as error:
            self._fail(said(error))
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
        bounds = {str(name): float(bound) for name, bound in self.sweeper.constraints.items()}
        missing = [name for name in (*self.objectives, *bounds) if not math.isfinite(numbers.get(name, math.nan))]
        self.trial.set_user_attr("figures", numbers)
        if missing:
            self._fail(f"no finite {', '.join(missing)} in the summary; its figures: {', '.join(numbers)}")
            return None
        for name, bound in bounds.items():
            self.trial.set_constraint(name, numbers[name] - bound)
        values = [float(numbers[name]) for name in self.objectives]
        self._tell(TrialState.COMPLETE, values)
        return values

    def _fail(self, reason: str) -> None:
        log.warning("trial %d failed: %s", self.number, reason)
        self.trial.set_user_attr(FAILURE, reason)
        self._tell(TrialState.FAIL)

    def _tell(self, state: TrialState, values: list[float] | None = None) -> None:
        self.trial.set_user_attr("seconds", self.seconds)
        self.trial.study.tell(self.number, values, state)

    @cached_property
    def trial(self) -> optuna.Trial:
        """The trial in the storage; its study has a sampler that draws nothing."""
        study = optuna.load_study(
            study_name=self.sweeper.study_name,
            storage=storage(self.sweeper.storage, self.folder.parent),
            sampler=RandomSampler(),
            pruner=pruner(self.sweeper.pruner),
        )
        return optuna.Trial(study, study.get_trials(deepcopy=False)[self.number]._trial_id)

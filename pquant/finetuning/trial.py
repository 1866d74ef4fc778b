"""The job of a trial: it reports every epoch and the final state of the trial to the study."""

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
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from pquant.errors import StoppedEarly
from pquant.finetuning.gpu import own_gpu
from pquant.finetuning.job import Row, Work
from pquant.finetuning.study import pruner, storage
from pquant.finetuning.timeout import limited
from pquant.finetuning.trial_locks import FAILURE, error_line, trial_lock
from pquant.resume import CHECKPOINT
from pquant.tracking.files import plain
from pquant.training.checkpoint import has_checkpoint

log = logging.getLogger(__name__)


class StudyTrial:
    """A trial of a study. It needs only the study's storage, so it can run in any process that has access to the storage.

    Args:
        sweeper: the node ``hydra.sweeper``.
        folder: the trial's folder, whose name is the trial's number.
        epochs: the number of epochs of the job.
    """

    def __init__(self, sweeper: DictConfig, folder: Path, epochs: int) -> None:
        self.sweeper, self.folder, self.number, self.epochs = sweeper, folder, int(folder.name), epochs
        self.objectives = [str(name) for name in sweeper.objectives]
        self.seconds = 0.0

    def conduct(self, work: Work) -> list[float] | None:
        """Run ``work`` and report the trial's state to the study; return the objectives.

        Return None if an objective is missing, if the trial was stopped early, or if another process runs or has finished the trial.
        """
        try:
            with trial_lock(self.folder.parent, self.number), own_gpu(self.folder.parent):
                return self._conduct(work)
        except Timeout:
            log.warning("trial %d already runs in another process", self.number)
            return None

    def _conduct(self, work: Work) -> list[float] | None:
        if self.store.get_trial(self.trial._trial_id).state.is_finished():
            log.warning("trial %d has finished already", self.number)
            return None
        try:
            with limited(self.sweeper.get("trial_timeout"), self._fail):
                metrics = work(self.report, has_checkpoint(self.folder / CHECKPOINT))
        except StoppedEarly as stop:
            log.info("trial %d: %s", self.number, stop)
            self._tell(TrialState.PRUNED)
            return None
        except Exception as error:
            self._fail(error_line(error))
            raise
        return self._complete(plain(metrics))

    def report(self, row: Row) -> None:
        """Report the first objective to the study after an epoch.

        Raises:
            StoppedEarly: the study's pruner stops the trial.
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

    def _complete(self, metrics: Mapping[str, Any]) -> list[float] | None:
        numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and not isinstance(value, bool)}
        bounds = {str(name): float(bound) for name, bound in self.sweeper.constraints.items()}
        missing = [name for name in (*self.objectives, *bounds) if not math.isfinite(numbers.get(name, math.nan))]
        self.trial.set_user_attr("metrics", numbers)
        if missing:
            self._fail(f"no finite {', '.join(missing)} in the summary; its metrics: {', '.join(numbers)}")
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
        """The trial in the storage, read without the other trials. Its study has a random sampler, which is not used here."""
        study = optuna.load_study(study_name=self.sweeper.study_name, storage=self.store, sampler=RandomSampler(), pruner=pruner(self.sweeper.pruner))
        return optuna.Trial(study, self.store.get_trial_id_from_study_id_trial_number(study._study_id, self.number))

    @property
    def store(self) -> BaseStorage:
        """The study's storage."""
        return storage(self.sweeper.storage, self.folder.parent)

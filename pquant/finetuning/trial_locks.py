"""File locks in the study's folder that record which process runs which trial; the operating system releases those of a process that dies.

A sweeper holds its own lock while it lives, and a job holds the lock of its trial while it runs. If the storage has a trial as running although
both locks are free, the trial was interrupted: it is queued again, with its number and its parameters. Processes that share a study must
therefore share its folder.
"""

import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import optuna
from filelock import FileLock, Timeout
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

log = logging.getLogger(__name__)

OWNER = "owner"
OWNER_LOCK = re.compile(r"owner-[\w.-]+\.lock")
FAILURE = "failure"
LOSSES, MOST_LOSSES = "losses", 3
"""Key of the number of lost jobs of a trial, and the largest number of times that a trial is repeated before it counts as failed."""
SECONDS_TO_DIE = 60


def trial_lock(folder: Path, number: int) -> FileLock:
    """Return the lock of a trial; entering it raises ``filelock.Timeout`` when another process runs the trial."""
    return FileLock(_locks(folder) / f"trial-{number}.lock", blocking=False)


def study_lock(folder: Path) -> FileLock:
    """Return the lock that a process holds while it changes the study as a whole."""
    return FileLock(_locks(folder) / "study.lock")


class Claims:
    """The trials that one sweeper claims from a study; other sweepers may share the study.

    Args:
        study: the study.
        store: the storage of the study.
        folder: the study's folder.
    """

    def __init__(self, study: optuna.Study, store: BaseStorage, folder: Path) -> None:
        self.study, self.store, self.folder = study, store, folder
        self.dying: dict[int, tuple[str, float]] = {}
        self.owner = FileLock(_locks(folder) / f"owner-{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}.lock", blocking=False)

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Hold the sweeper's lock while the context lasts, so that its trials count as running."""
        with study_lock(self.folder):
            self.owner.acquire()
        try:
            yield
        finally:
            with study_lock(self.folder):
                self.owner.release()
                Path(self.owner.lock_file).unlink(missing_ok=True)

    def claim(self, count: int, total: int, sampler: Callable[[int], BaseSampler], space: Mapping[str, BaseDistribution]) -> list[optuna.trial.Trial]:
        """Return up to ``count`` trials with parameters from ``space`` that no other process runs.

        Interrupted trials come first, then new ones, as long as the study has fewer than ``total`` trials.
        """
        with study_lock(self.folder):
            self._release_interrupted()
            trials = self.study.get_trials(deepcopy=False)
            waiting = [trial.number for trial in trials if trial.state is TrialState.WAITING]
            return [self._ask(sampler(number), space) for number in [*waiting, *range(len(trials), total)][:count]]

    def settle(self, number: int, reason: str, lost: bool = False) -> None:
        """Record a trial that was launched as failed for ``reason``, unless its job has reported its end or still runs.

        A trial whose job was ``lost`` is queued again, with its checkpoint, up to three times. If the process of the job has not ended yet,
        ``settle_dying`` does this later.
        """
        if not self._runs(number):
            self._record(number, reason, lost)
        elif lost:
            self.dying[number] = reason, time.monotonic() + SECONDS_TO_DIE

    def settle_dying(self) -> bool:
        """Settle the lost trials whose processes have ended since; return whether some processes have not ended yet."""
        for number, (reason, end) in list(self.dying.items()):
            if not self._runs(number):
                del self.dying[number]
                self._record(number, reason, lost=True)
            elif time.monotonic() > end:
                del self.dying[number]
                log.warning("trial %d still runs, %d seconds after its job was lost: %s", number, SECONDS_TO_DIE, reason)
        return bool(self.dying)

    def _runs(self, number: int) -> bool:
        return _held(Path(trial_lock(self.folder, number).lock_file))

    def _record(self, number: int, reason: str, lost: bool) -> None:
        trial = self.study.get_trials(deepcopy=False)[number]
        losses = trial.user_attrs.get(LOSSES, 0)
        if trial.state is not TrialState.RUNNING:
            return
        if lost and losses < MOST_LOSSES:
            log.warning("trial %d was lost and runs again, from its last checkpoint: %s", number, reason)
            self.store.set_trial_user_attr(trial._trial_id, LOSSES, losses + 1)
            self.store.set_trial_state_values(trial._trial_id, TrialState.WAITING)
            return
        self.store.set_trial_user_attr(trial._trial_id, FAILURE, reason)
        self.study.tell(number, state=TrialState.FAIL)

    def _ask(self, sampler: BaseSampler, space: Mapping[str, BaseDistribution]) -> optuna.trial.Trial:
        self.study.sampler = sampler
        trial = self.study.ask(dict(space))
        trial.set_user_attr(OWNER, Path(self.owner.lock_file).name)
        return trial

    def _release_interrupted(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if not self._is_alive(trial):
                self.store.set_trial_state_values(trial._trial_id, TrialState.WAITING)
        for owner in _locks(self.folder).glob("owner-*.lock"):
            if not _held(owner):
                owner.unlink()

    def _is_alive(self, trial: FrozenTrial) -> bool:
        owner = trial.user_attrs.get(OWNER)
        known = isinstance(owner, str) and OWNER_LOCK.fullmatch(owner)  # others may write any text to a storage
        sweeper_lives = bool(known) and _held(_locks(self.folder) / str(owner))
        return sweeper_lives or self._runs(trial.number)


def _locks(folder: Path) -> Path:
    path = folder / "locks"
    path.mkdir(parents=True, exist_ok=True)
    return path


def _held(path: Path) -> bool:
    """Return whether another process holds a lock."""
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def error_line(error: BaseException) -> str:
    """Return an error as one line, for the record of a failed trial."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"

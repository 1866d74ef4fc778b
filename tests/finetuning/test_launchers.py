"""A study asks for the next trial as soon as one ends."""

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from joblib.externals.loky.process_executor import TerminatedWorkerError
from omegaconf import OmegaConf

from pquant.finetuning import launchers, sweep
from pquant.finetuning.launchers import Batches, JobFuture, Jobs, Processes, trials_at_once
from pquant.finetuning.timeout import TrialTimeoutError
from pquant.finetuning.trial_locks import trial_lock

from .conftest import FakeJobs, Study
from .test_workers import BASIC, JOBLIB, SLURM


class ZeroLast(Batches):
    """Runs a job, not trial 0's, whenever some start, and all that are left once trial 4 has started."""

    def __init__(self, launcher: Any) -> None:
        super().__init__(launcher)
        self.started: list[list[int]] = []
        self.waiting: dict[int, tuple[JobFuture, Any]] = {}

    def start(self, jobs: Jobs) -> dict[JobFuture, int]:
        self.started.append(list(jobs))
        self.waiting |= {number: (Future(), overrides) for number, overrides in jobs.items()}
        futures = {self.waiting[number][0]: number for number in jobs}
        for number in sorted(self.waiting, reverse=True)[: None if 4 in jobs else 1]:
            future, overrides = self.waiting.pop(number)
            [ended] = super().start({number: overrides})
            future.set_result(ended.result())
        return futures


def test_the_next_trial_starts_as_soon_as_one_ends(study: Study, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ZeroLast] = []

    @contextmanager
    def starter(launcher: Any, places: int) -> Iterator[ZeroLast]:
        made.append(ZeroLast(launcher))
        yield made[0]

    monkeypatch.setattr(sweep, "starter", starter)
    monkeypatch.setattr(sweep, "trials_at_once", lambda launcher, asked: 2)
    study.start("finetuning=tpe", "finetuning.num_trials=5", "finetuning.early_stopping.type=null")
    assert made[0].started == [[0, 1], [2], [3], [4]]
    assert jobs.numbers == [1, 2, 3, 4, 0]
    assert [row["state"] for row in study.rows()] == ["complete"] * 5


def test_trials_that_run_end_before_too_many_failures_stop_the_study(study: Study, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    class AllAtLast(ZeroLast):
        def start(self, given: Jobs) -> dict[JobFuture, int]:
            futures = super().start(given)
            if 2 in given:
                future, overrides = self.waiting.pop(0)
                future.set_result(next(iter(Batches.start(self, {0: overrides}))).result())
            return futures

    @contextmanager
    def starter(launcher: Any, places: int) -> Iterator[ZeroLast]:
        yield AllAtLast(launcher)

    def fail(number: int) -> None:
        if number:
            raise RuntimeError(f"broken {number}")

    jobs.before = fail
    monkeypatch.setattr(sweep, "starter", starter)
    monkeypatch.setattr(sweep, "trials_at_once", lambda launcher, asked: 2)
    with pytest.raises(SystemExit, match="2 of 8 trials failed"):
        study.start("finetuning=random", "finetuning.num_trials=8", "finetuning.max_failure_rate=0.2", "finetuning.early_stopping.type=null")
    assert [row["state"] for row in study.rows()] == ["complete", "failed", "failed"]


def test_other_trials_start_while_the_process_of_a_lost_one_dies(study: Study, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    dying: list[FileLock] = []

    class LosesZero(Batches):
        def start(self, given: Jobs) -> dict[JobFuture, int]:
            if 0 not in given or dying:
                return super().start(given)
            dying.append(trial_lock(study.folder, 0))
            dying[0].acquire()
            return {ended(error=TerminatedWorkerError("killed")): 0} | super().start({number: given[number] for number in given if number})

    @contextmanager
    def starter(launcher: Any, places: int) -> Iterator[LosesZero]:
        yield LosesZero(launcher)

    jobs.before = lambda number: dying[0].release() if number == 2 else None
    monkeypatch.setattr(sweep, "starter", starter)
    monkeypatch.setattr(sweep, "trials_at_once", lambda launcher, asked: 2)
    study.start("finetuning=random", "finetuning.num_trials=5", "finetuning.early_stopping.type=null")
    assert jobs.numbers == [1, 2, 3, 0, 4]
    assert [row["state"] for row in study.rows()] == ["complete"] * 5


@pytest.mark.parametrize(
    ("launcher", "asked", "given"),
    [(BASIC, 3, 1), (JOBLIB, 3, 3), (JOBLIB, 9, 4), (JOBLIB | {"n_jobs": 2}, 1, 1), (SLURM, 64, 16), ({"_target_": "other.Launcher"}, 64, 64)],
)
def test_no_more_trials_run_than_asked_for_and_than_the_launcher_can(
    launcher: dict[str, object], asked: int, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launchers, "_cores", lambda: 4)
    assert trials_at_once(OmegaConf.create(launcher), asked) == given


def ended(result: object = None, error: Exception | None = None) -> JobFuture:
    future: JobFuture = Future()
    if error:
        future.set_exception(error)
    else:
        future.set_result(JobReturn(status=JobStatus.COMPLETED, _return_value=result))
    return future


@pytest.mark.parametrize(
    ("last", "same"),
    [(ended(0.5), True), (ended(ValueError("bad")), True), (ended(error=OSError("no room")), True)]
    + [(ended(TrialTimeoutError("too long")), False), (ended(error=launchers.BrokenExecutor("killed")), False)],
)
def test_a_worker_that_died_or_was_interrupted_is_replaced(last: JobFuture, same: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Worker:
        def submit(self, *arguments: Any) -> JobFuture:
            return ended()

        def shutdown(self, kill_workers: bool) -> None:
            pass

    class Launcher:
        hydra_context = config = task_function = None

    monkeypatch.setattr("joblib.externals.loky.process_executor.ProcessPoolExecutor", lambda **_: Worker())
    places, first = Processes(Launcher(), 1), Worker()
    places.places = [(first, last)]
    assert list(places.start({3: []}).values()) == [3]
    assert (places.places[0][0] is first) is same

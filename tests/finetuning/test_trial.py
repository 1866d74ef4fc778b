"""A trial's job, by itself: what is done, or done elsewhere, is not done again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from omegaconf import OmegaConf
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from pquant.finetuning import trial_locks
from pquant.finetuning.study import open_study, storage
from pquant.finetuning.trial import StudyTrial
from pquant.finetuning.trial_locks import Claims, trial_lock

from .conftest import FakeJobs, Study

SPACE = {"x": optuna.distributions.FloatDistribution(0, 1)}
SWEEPER = {"objectives": ["loss"], "constraints": {}, "storage": "study.db", "study_name": "one", "pruner": None}


def claims(folder: Path) -> Claims:
    store = storage("study.db", folder)
    return Claims(open_study("one", store, ["minimize"], {}), store, folder)


def work(callback: Callable[[dict[str, Any]], None], resume: bool) -> dict[str, Any]:
    callback({"epoch": 1, "seconds": 1.0, "loss": 0.5})
    return {"loss": 0.25, "note": "text"}


def never(callback: Callable[[dict[str, Any]], None], resume: bool) -> dict[str, Any]:
    pytest.fail("the trial is not to be run")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "0").mkdir()
    return tmp_path


def job(folder: Path) -> StudyTrial:
    return StudyTrial(OmegaConf.create(SWEEPER), folder / "0", epochs=2)


def test_a_trial_reports_its_epochs_and_tells_its_end_once(folder: Path) -> None:
    owner = claims(folder)
    owner.claim(1, 1, lambda number: RandomSampler(number), SPACE)
    assert job(folder).conduct(work) == [0.25]
    [trial] = owner.study.trials
    assert trial.state is TrialState.COMPLETE and trial.intermediate_values == {0: 0.5} and trial.user_attrs["metrics"] == {"loss": 0.25}
    assert job(folder).conduct(never) is None


def test_a_trial_that_runs_elsewhere_is_left_alone(folder: Path) -> None:
    owner = claims(folder)
    owner.claim(1, 1, lambda number: RandomSampler(number), SPACE)
    with trial_lock(folder, 0):
        assert job(folder).conduct(never) is None
        owner.settle(0, "no reason")
        assert owner.study.trials[0].state is TrialState.RUNNING
    owner.settle(0, "a reason")
    assert owner.study.trials[0].state is TrialState.FAIL and owner.study.trials[0].user_attrs["failure"] == "a reason"


def test_a_trial_whose_job_is_lost_runs_again_three_times_before_it_counts_as_failed(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    owner = claims(folder)
    with owner.alive():
        for time in range(1, 5):
            [trial] = owner.claim(9, 1, lambda number: RandomSampler(number), SPACE)
            owner.settle(trial.number, f"lost {time}", lost=True)
            assert owner.study.trials[0].state is (TrialState.WAITING if time < 4 else TrialState.FAIL)
    assert owner.study.trials[0].user_attrs["failure"] == "lost 4"
    assert caplog.messages[-1] == "trial 0 was lost and runs again, from its last checkpoint: lost 3" and len(caplog.messages) == 3


def test_a_lost_trial_runs_again_when_its_process_has_died_and_nothing_waits_for_that(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    owner = claims(folder)
    with owner.alive():
        owner.claim(1, 1, lambda number: RandomSampler(number), SPACE)
        with trial_lock(folder, 0):
            owner.settle(0, "killed", lost=True)
            assert owner.settle_dying() and owner.study.trials[0].state is TrialState.RUNNING
        assert not owner.settle_dying() and owner.study.trials[0].state is TrialState.WAITING
        owner.claim(1, 1, lambda number: RandomSampler(number), SPACE)
        monkeypatch.setattr(trial_locks, "SECONDS_TO_DIE", -1)
        with trial_lock(folder, 0):
            owner.settle(0, "said to be killed", lost=True)
            assert not owner.settle_dying() and owner.study.trials[0].state is TrialState.RUNNING
    assert "trial 0 still runs" in caplog.messages[-1] and "said to be killed" in caplog.messages[-1]


def test_trials_of_the_living_are_not_claimed_those_of_the_dead_are(folder: Path) -> None:
    first, second = claims(folder), claims(folder)
    with first.alive():
        assert [trial.number for trial in first.claim(2, 3, lambda number: RandomSampler(number), SPACE)] == [0, 1]
        assert [trial.number for trial in second.claim(9, 3, lambda number: RandomSampler(number), SPACE)] == [2]
    params = first.study.trials[1].params
    with second.alive(), trial_lock(folder, 0):
        retried = second.claim(9, 3, lambda number: RandomSampler(number), SPACE)
    assert [trial.number for trial in retried] == [1] and retried[0].params == params


def test_jobs_that_cannot_start_are_failures(study: Study, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    launch = BasicLauncher.launch

    def broken(self: BasicLauncher, overrides: Any, initial_job_idx: int) -> Any:
        if initial_job_idx == 1:
            raise OSError("no room")
        return launch(self, overrides, initial_job_idx)

    monkeypatch.setattr(BasicLauncher, "launch", broken)
    study.start("finetuning=random", "finetuning.num_trials=3", "finetuning.max_failure_rate=0.5")
    assert [row["state"] for row in study.rows()] == ["complete", "failed", "complete"]
    assert study.rows()[1]["failure"] == "OSError: no room"

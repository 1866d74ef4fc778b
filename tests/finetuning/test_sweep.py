"""Studies, started as a user starts them, with jobs that do not train."""

import shlex
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from .conftest import FakeJobs, Study, metrics_of


def refusal(study: Study, *overrides: str) -> str:
    with pytest.raises(SystemExit) as caught:
        study.start(*overrides)
    return str(caught.value)


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid", "cmaes", "nsga2", "nsga3", "gp", "qmc"])
def test_every_sampler_runs_a_study(sampler: str, study: Study, jobs: FakeJobs) -> None:
    study.start(f"finetuning={sampler}", "finetuning.num_trials=6", "finetuning.early_stopping.type=null")
    assert jobs.numbers == list(range(6))
    trials = study.trials()
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 6
    assert len({tuple(trial.params.values()) for trial in trials}) > 1
    for trial, run in zip(trials, jobs.runs, strict=True):
        assert run.config["optimizer"]["lr"] == pytest.approx(trial.params["optimizer.lr"])
        assert trial.values[0] == metrics_of(run.config)["val/accuracy"]


def test_a_grid_is_walked_once_whatever_num_trials_says(study: Study, jobs: FakeJobs) -> None:
    study.start(
        "finetuning=grid",
        "finetuning.early_stopping.type=null",
        "finetuning.sampler.params.search_space={optimizer.lr: [1e-3, 4e-3], pruning: [dst, wanda]}",
        "finetuning.hyperparameter_search.numerical={optimizer.lr: null, quantization.default_weight_fractional_bits: null}",
    )
    seen = {(run.config["optimizer"]["lr"], run.config["pruning"]["_target_"].rpartition(".")[2]) for run in jobs.runs}
    assert len(jobs.runs) == len(seen) == 4
    assert study.results()["best_params"]["optimizer.lr"] == 4e-3


def test_choices_keep_their_types(study: Study, jobs: FakeJobs) -> None:
    choices = (
        "{model.batch_norm: [true, false], model.sizes: [[null, 8, null]], training.device: ['cpu', 'auto'], +training.note: [null, '1', 1, 1.5]}"
    )
    study.start("finetuning=random", "finetuning.num_trials=12", f"finetuning.hyperparameter_search.categorical={choices}")
    values = [(run.config["model"]["batch_norm"], run.config["training"]["note"]) for run in jobs.runs]
    assert {repr(flag) for flag, _ in values} == {"True", "False"}
    assert {repr(note) for _, note in values} <= {"None", "'1'", "1", "1.5"} and len({repr(note) for _, note in values}) > 2
    assert jobs.runs[0].config["model"]["sizes"] == [None, 8, None]
    assert {run.config["training"]["device"] for run in jobs.runs} == {"cpu", "auto"}


def test_ranges_include_both_ends_and_keep_integers(study: Study, jobs: FakeJobs) -> None:
    study.start(
        "finetuning=grid",
        "finetuning.hyperparameter_search.numerical={optimizer.lr: [0.001, 0.01, 0.0045], quantization.default_weight_fractional_bits: [3, 7, 4]}",
    )
    assert {run.config["optimizer"]["lr"] for run in jobs.runs} == {0.001, 0.0055, 0.01}
    assert {run.config["quantization"]["default_weight_fractional_bits"] for run in jobs.runs} == {3, 7}


def test_a_field_on_the_command_line_is_searched_or_fixed(study: Study, jobs: FakeJobs) -> None:
    study.start("finetuning=random", "finetuning.num_trials=3", "optimizer.lr=0.004", "training.batch_size=range(16,65,16)")
    assert {run.config["optimizer"]["lr"] for run in jobs.runs} == {0.004}
    assert {run.config["training"]["batch_size"] for run in jobs.runs} <= {16, 32, 48, 64}
    assert "training.batch_size" in study.rows()[0]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("finetuning.hyperparameter_search.numerical={pruning.alhpa: [0, 1, 0.1]}", ["'alhpa'", "did you mean 'alpha'"]),
        ("finetuning.hyperparameter_search.categorical={prunning: [dst]}", ["prunning"]),
        ("finetuning.hyperparameter_search.categorical={pruning: [dst, wnda]}", ["'wnda'", "did you mean 'wanda'"]),
        ("finetuning.hyperparameter_search.numerical={pruning.max_pruning_pct: [0.5, 1.5, 0.5]}", ["DST.max_pruning_pct", "1.5"]),
        ("finetuning.hyperparameter_search.numerical={optimizer.lr: [1, 0, 1]}", ["['optimizer.lr']", "low <= high"]),
        ("finetuning.hyperparameter_search.numerical={optimizer.lr: [0, 1, log]}", ["0 < low"]),
        ("finetuning.hyperparameter_search.categorical={optimizer.lr: 3}", ["['optimizer.lr']", "list of choices"]),
        ("finetuning.hyperparameter_search.numerical={optimizer.lr: null, quantization.default_weight_fractional_bits: null}", ["nothing to search"]),
        ("finetuning.sampler.type=TPESampeler", ["TPESampler"]),
        ("finetuning.early_stopping.type=MedianPruna", ["MedianPruner"]),
        ("finetuning.sampler.params.n_startup=3", ["TPESampler", "n_startup"]),
        ("finetuning=grid optimizer.lr=interval(0.001,0.01)", ["a grid needs", "step"]),
        ("finetuning.objectives=[val/accuracy,ebop]", ["'ebop'", "did you mean 'ebops'"]),
        ("finetuning.objectives=[]", ["objectives"]),
        ("finetuning.directions=[up]", ["'maximize' or 'minimize'"]),
        ("finetuning.storage=study.txt", ["*.db", "study.txt"]),
        ("finetuning.storage=nosuchdb://x", ["nosuchdb"]),
        ("finetuning.num_trials=0", ["num_trials"]),
        ("finetuning.max_failure_rate=2", ["max_failure_rate"]),
        ("dry_run=true", ["dry_run"]),
    ],
)
def test_what_cannot_work_is_said_before_the_first_trial(override: str, parts: list[str], study: Study, jobs: FakeJobs) -> None:
    line = refusal(study, *(override.split() if override.startswith("finetuning=") else ("finetuning=tpe", override)))
    assert not jobs.runs and "\n" not in line
    for part in parts:
        assert part in line


@pytest.mark.parametrize("overrides", [["finetuning=tpe"], ["finetuning.num_trials=3"]])
def test_a_study_needs_a_sampler_and_multirun(overrides: list[str], study: Study, jobs: FakeJobs) -> None:
    study.multirun = False
    assert "-m finetuning=tpe" in refusal(study, f"hydra.run.dir={study.folder}", *overrides)
    assert not jobs.runs


def test_several_objectives_give_a_front(study: Study, jobs: FakeJobs) -> None:
    study.start("finetuning=nsga2", "finetuning.num_trials=6")
    found = study.results()["solutions"]
    points = [trial.values for trial in study.trials()]
    front = [one for one in points if not any(a >= one[0] and e <= one[1] and [a, e] != one for a, e in points)]
    assert sorted(solution["values"] for solution in found) == sorted(map(list, {tuple(one) for one in front})) or len(found) >= len(front)
    assert all(list(solution["values"]) in front for solution in found)
    assert "val/accuracy" in study.rows()[0] and "ebops" in study.rows()[0]


def test_directions_may_be_given(study: Study, jobs: FakeJobs) -> None:
    study.start("finetuning=random", "finetuning.num_trials=4", "finetuning.directions=[minimize]", "finetuning.early_stopping.type=null")
    assert study.results()["best_value"] == min(trial.value for trial in study.trials())


def test_the_best_is_within_the_constraints(study: Study, jobs: FakeJobs) -> None:
    study.start("finetuning=tpe", "finetuning.num_trials=6", "finetuning.constraints={ebops: 5000}", "finetuning.early_stopping.type=null")
    able = [trial for trial in study.trials() if trial.params["quantization.default_weight_fractional_bits"] <= 5]
    assert 0 < len(able) < 6
    assert study.results()["best_value"] == max(trial.value for trial in able)
    assert {row["feasible"] for row in study.rows()} == {"True", "False"}


def test_failed_trials_are_recorded_and_the_study_goes_on(study: Study, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int) -> None:
        if number == 1:
            raise RuntimeError("out of memory")

    jobs.before = fail
    jobs.nan = {3}
    study.start("finetuning=tpe", "finetuning.num_trials=6", "finetuning.early_stopping.type=null", "finetuning.max_failure_rate=0.4")
    rows = study.rows()
    assert [row["state"] for row in rows] == ["complete", "failed", "complete", "failed", "complete", "complete"]
    assert rows[1]["failure"] == "RuntimeError: out of memory" and "val/accuracy" in rows[3]["failure"]
    assert study.results()["trials"] == {"complete": 4, "stopped early": 0, "failed": 2}


def test_too_many_failures_stop_the_study(study: Study, jobs: FakeJobs) -> None:
    def fail(number: int) -> None:
        raise RuntimeError(f"broken {number}")

    jobs.before = fail
    line = refusal(study, "finetuning=tpe", "finetuning.num_trials=8", "finetuning.max_failure_rate=0.25")
    assert jobs.numbers == [0, 1, 2]
    assert "3 of 8 trials failed" in line and "broken 2" in line


def test_failed_points_of_a_grid_run_again_with_the_same_command(study: Study, jobs: FakeJobs) -> None:
    def fail(number: int) -> None:
        if number in (1, 2):
            raise RuntimeError("no space left")

    grid = ["finetuning=grid", "finetuning.early_stopping.type=null", "finetuning.max_failure_rate=0.5"]
    grid.append("finetuning.sampler.params.search_space={optimizer.lr: [1e-3, 4e-3], pruning: [dst, wanda]}")
    grid.append("finetuning.hyperparameter_search.numerical={optimizer.lr: null, quantization.default_weight_fractional_bits: null}")
    jobs.before = fail
    study.start(*grid)
    assert jobs.numbers == [0, 1, 2, 3]
    jobs.before = lambda number: None
    study.start(*grid)
    assert jobs.numbers == [0, 1, 2, 3, 4, 5]
    points = [tuple(trial.params.values()) for trial in study.trials()]
    assert points[4:] == points[1:3] and len(set(points)) == 4
    study.start(*grid)
    assert len(jobs.runs) == 6


def test_a_password_is_not_shown_where_a_storage_cannot_be_opened(study: Study, jobs: FakeJobs) -> None:
    study.monkeypatch.setenv("DATABASE", "nosuchdb://me:s3cret@host/x")
    line = refusal(study, "finetuning=random", "finetuning.num_trials=1", "finetuning.storage='${oc.env:DATABASE}'")
    assert "nosuchdb://me:***@host/x" in line and "s3cret" not in line


def loaded(study: Study) -> optuna.Study:
    where = f"sqlite:///{study.folder / 'study.db'}"
    [summary] = optuna.get_all_study_summaries(where)
    return optuna.load_study(study_name=summary.study_name, storage=where)


@pytest.mark.parametrize(
    "planted",
    [
        {"+training.note": "evil"},
        {"optimizer.lr": 55.0},
        {"hydra.job.env_set": "{PQUANT_ALLOW: os}"},
    ],
)
def test_a_trial_that_somebody_else_planted_is_not_run(planted: dict[str, Any], study: Study, jobs: FakeJobs) -> None:
    settings = ["finetuning=random", "finetuning.early_stopping.type=null"]
    study.start(*settings, "finetuning.num_trials=1")
    there = loaded(study)
    known = there.trials[0]
    params = known.params | planted
    distributions = {name: known.distributions.get(name) for name in params}
    for name, value in planted.items():
        here = known.distributions.get(name)
        other = (
            optuna.distributions.FloatDistribution(here.low, 100.0, log=here.log) if here else optuna.distributions.CategoricalDistribution([value])
        )
        distributions[name] = other
    there.add_trial(optuna.trial.create_trial(state=TrialState.WAITING, params=params, distributions=distributions))
    line = refusal(study, *settings, "finetuning.num_trials=2")
    assert "was not drawn from this search" in line or "distribution" in line, line
    assert len(jobs.runs) == 1


def test_an_owner_is_the_name_of_a_lock(study: Study, jobs: FakeJobs, tmp_path: Path) -> None:
    settings = ["finetuning=random", "finetuning.early_stopping.type=null"]
    study.start(*settings, "finetuning.num_trials=1")
    there = loaded(study)
    known = there.trials[0]
    away = tmp_path / "away"
    there.add_trial(
        optuna.trial.create_trial(state=TrialState.RUNNING, params=known.params, distributions=known.distributions, user_attrs={"owner": str(away)})
    )
    study.start(*settings, "finetuning.num_trials=2")
    assert len(jobs.runs) == 2 and not away.exists()


def test_a_state_that_optuna_would_unpickle_is_read_only_if_the_user_allows_it(study: Study, jobs: FakeJobs) -> None:
    cmaes = ["finetuning=cmaes", "finetuning.early_stopping.type=null"]
    study.start(*cmaes, "finetuning.num_trials=3")
    assert "PQUANT_ALLOW=optuna.samplers.CmaEsSampler" in refusal(study, *cmaes, "finetuning.num_trials=4")
    study.monkeypatch.setenv("PQUANT_ALLOW", "optuna.samplers.CmaEsSampler")
    study.start(*cmaes, "finetuning.num_trials=4")
    assert jobs.numbers == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["a?b.db", "a%41b.db", "a b#c.db", "{x}.db"])
def test_a_storage_of_any_name_is_in_the_folder(name: str, study: Study, jobs: FakeJobs) -> None:
    study.folder = study.folder.with_name("odd? %41 folder")
    study.start("finetuning=random", "finetuning.num_trials=1", f"finetuning.storage='{name}'")
    assert (study.folder / name).is_file()
    assert not [path for path in study.folder.parent.iterdir() if path != study.folder]


def test_hopeless_trials_are_stopped_and_the_time_saved_is_said(study: Study, jobs: FakeJobs) -> None:
    study.start("finetuning=random", "finetuning.num_trials=8", "finetuning.early_stopping.params={n_startup_trials: 2, n_warmup_steps: 1}")
    rows = study.rows()
    stopped = [row for row in rows if row["state"] == "stopped early"]
    assert stopped and all(float(row["seconds_saved"]) == 2.0 * (4 - float(row["seconds"]) / 2) for row in stopped)
    assert study.results()["seconds_saved"] == pytest.approx(sum(float(row["seconds_saved"]) for row in stopped))
    assert not any(row["val/accuracy"] for row in stopped)


def test_an_interrupted_study_goes_on_to_the_same_end(study: Study, jobs: FakeJobs, tmp_path: Path) -> None:
    def interrupt(number: int) -> None:
        if number == 2:
            (study.folder / "2" / "checkpoint.pt").touch()
            raise KeyboardInterrupt

    settings = ["finetuning=tpe", "finetuning.num_trials=5", "finetuning.early_stopping.type=null"]
    jobs.before = interrupt
    with pytest.raises(SystemExit, match="130"):
        study.start(*settings)
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE", "COMPLETE", "RUNNING"]
    jobs.before = lambda number: None
    study.start(*settings)
    assert jobs.numbers == [0, 1, 2, 2, 3, 4]
    assert [run.resume for run in jobs.runs] == [False, False, False, True, False, False]
    params = [trial.params for trial in study.trials()]
    whole = Study(tmp_path / "whole", study.monkeypatch)
    whole.start(*settings)
    assert params == [trial.params for trial in whole.trials()]


def test_a_finished_study_can_be_extended_but_not_changed(study: Study, jobs: FakeJobs) -> None:
    study.start("finetuning=tpe", "finetuning.num_trials=2")
    study.start("finetuning=tpe", "finetuning.num_trials=2")
    assert jobs.numbers == [0, 1]
    study.start("finetuning=tpe", "finetuning.num_trials=3")
    assert jobs.numbers == [0, 1, 2]
    line = refusal(study, "finetuning=tpe", "finetuning.num_trials=4", "training.batch_size=32")
    assert "training.batch_size = 64 instead of 32" in line and "experiment_name" in line


@pytest.mark.parametrize("storage", ["other.db", "study.journal"])
def test_the_storage_is_a_file_in_the_folder(storage: str, study: Study, jobs: FakeJobs) -> None:
    for trials in (2, 3):
        study.start("finetuning=random", f"finetuning.num_trials={trials}", f"finetuning.storage={storage}")
    assert (study.folder / storage).stat().st_size > 0
    assert jobs.numbers == [0, 1, 2] and len(study.rows()) == 3


def test_the_command_of_a_trial_runs_it_again(study: Study, jobs: FakeJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    study.start("finetuning=random", "finetuning.num_trials=1", "data.validation_fraction=0.2")
    trial = jobs.runs[0].config
    command = shlex.split(study.rows()[0]["command"])
    assert command[0] == "python" and command[1].endswith("run.py") and not any("finetuning" in word for word in command)
    study.multirun = False
    study.start(f"hydra.run.dir={study.folder / '1'}", *command[2:])
    again = jobs.runs[1].config
    assert {name: section for name, section in again.items() if name != "finetuning"} == {k: v for k, v in trial.items() if k != "finetuning"}


def test_trackers_get_the_study_as_group(study: Study, jobs: FakeJobs) -> None:
    study.start("finetuning=random", "finetuning.num_trials=2", "finetuning.experiment_name=night", "tracker=wandb")
    assert [(run.config["tracker"]["group"], run.config["tracker"]["name"]) for run in jobs.runs] == [("night", "night-0"), ("night", "night-1")]


def test_several_jobs_on_the_basic_launcher_are_told_to_be_serial(study: Study, jobs: FakeJobs, capsys: pytest.CaptureFixture[str]) -> None:
    study.start("finetuning=random", "finetuning.num_trials=2", "hydra.sweeper.n_jobs=2")
    assert "one trial at a time" in capsys.readouterr().out
    assert jobs.numbers == [0, 1]

"""Studies in processes of their own: killed, shared, and spread by launchers."""

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from .conftest import ROOT, Study

COMMAND = ["-m", "finetuning=random", "tracker=none", "progress=quiet", "finetuning.early_stopping.type=null"]
SHORT = ["training.pretraining_epochs=0", "training.epochs=1", "training.fine_tuning_epochs=0"]


@contextmanager
def started(script: Path, folder: Path, *overrides: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(script), *COMMAND, f"hydra.sweep.dir={folder}", *overrides]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **variables}) as process:
        try:
            yield process
        finally:
            process.kill()


def run(script: Path, folder: Path, *overrides: str, status: int = 0, **environment: str) -> str:
    with started(script, folder, *overrides, **environment) as process:
        said = process.communicate(timeout=300)[0]
        assert process.returncode == status, said
    return said


def numbers(notes: Path) -> list[int]:
    return sorted(int(note.name.partition("-")[0]) for note in notes.iterdir())


FAKE = ROOT / "tests" / "finetuning" / "fake_run.py"


def test_a_killed_study_goes_on_to_the_same_total(study: Study, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    run(FAKE, study.folder, "finetuning.num_trials=5", status=9, NOTES=str(notes), KILL="2")
    assert numbers(notes) == [0, 1, 2]
    run(FAKE, study.folder, "finetuning.num_trials=5", NOTES=str(notes))
    assert numbers(notes) == [0, 1, 2, 2, 3, 4]
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 5


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["study.db", "study.journal"])
def test_two_processes_share_a_study_and_no_trial_runs_twice(storage: str, study: Study, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    notes.mkdir()
    overrides = ["finetuning.num_trials=24", f"finetuning.storage={storage}"]
    with started(FAKE, study.folder, *overrides, NOTES=str(notes)) as one, started(FAKE, study.folder, *overrides, NOTES=str(notes)) as other:
        said = [process.communicate(timeout=300)[0] for process in (one, other)]
    assert one.returncode == other.returncode == 0, said
    assert numbers(notes) == list(range(24))
    assert len({note.name.partition("-")[2] for note in notes.iterdir()}) == 2
    assert [row["state"] for row in study.rows()] == ["complete"] * 24 or "in other processes" in "".join(said)


@pytest.mark.slow
def test_joblib_runs_trials_in_parallel_with_their_share_of_the_cores(study: Study) -> None:
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "training.threads=0"]
    said = run(ROOT / "run.py", study.folder, *SHORT, *launcher, "finetuning.num_trials=4", PYTHONPROFILEIMPORTTIME="1")
    importing = len(re.findall(r"^import time:.*\| +torch$", said, re.MULTILINE))
    assert importing == 2, "torch is imported by the study and by the process that its workers are forked from"
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 4
    threads = [OmegaConf.load(study.folder / str(number) / ".hydra" / "config.yaml").training.threads for number in range(4)]
    assert threads == [max(1, len(os.sched_getaffinity(0)) // 2)] * 4


def left(folder: Path) -> dict[str, Any]:
    """Return what a study's trials leave but times and the study's own name."""
    found: dict[str, Any] = {}
    for summary in sorted(folder.glob("*/summary.json")):
        figures = {name: value for name, value in json.loads(summary.read_text()).items() if name not in ("wall_seconds", "config_hash")}
        found[summary.parent.name] = figures, (summary.parent / "model.safetensors").read_bytes()
    return found


@pytest.mark.slow
def test_one_seed_gives_the_same_trials_one_after_the_other_and_in_parallel(tmp_path: Path) -> None:
    overrides = [*SHORT, "training.threads=1", "finetuning.num_trials=4"]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    for name, launcher in (("one", []), ("two", parallel), ("three", parallel)):
        run(ROOT / "run.py", tmp_path / name, *overrides, *launcher)
    first = left(tmp_path / "one")
    assert list(first) == ["0", "1", "2", "3"] and len({weights for _, weights in first.values()}) == 4
    assert left(tmp_path / "two") == first and left(tmp_path / "three") == first


@pytest.mark.slow
def test_workers_that_are_killed_leave_nothing_behind(study: Study, tmp_path: Path) -> None:
    notes, moments = tmp_path / "notes", random.Random(0)
    notes.mkdir()
    overrides = ["finetuning.num_trials=12"]
    for begun in (4, 8):
        with started(FAKE, study.folder, *overrides, NOTES=str(notes)) as process:
            while process.poll() is None and len(numbers(notes)) < begun:
                time.sleep(moments.uniform(0, 0.1))
    (study.folder / ".trials.csv.0123abcd.tmp").touch()
    run(FAKE, study.folder, *overrides, NOTES=str(notes))
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 12
    assert not list(study.folder.rglob("*.tmp")) and not list((study.folder / "locks").glob("owner-*"))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("submitit") is None, reason="needs the extra slurm")
def test_submitit_runs_trials(study: Study) -> None:
    run(ROOT / "run.py", study.folder, *SHORT, "finetuning.num_trials=2", "hydra/launcher=submitit_local", "hydra.sweeper.n_jobs=2")
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray")
def test_ray_runs_trials(study: Study) -> None:
    run(
        ROOT / "run.py",
        study.folder,
        *SHORT,
        "finetuning.num_trials=2",
        "hydra/launcher=ray",
        "hydra.sweeper.n_jobs=2",
        "+hydra.launcher.ray.init.num_cpus=2",
    )
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 2


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_no_other_trial_with_it(study: Study, tmp_path: Path) -> None:
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "finetuning.num_trials=4", "finetuning.max_failure_rate=0.5"]
    callback = ["+hydra.callbacks.dying._target_=dying_trials.Dying"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "finetuning")])
    run(ROOT / "run.py", study.folder, *joblib, *callback, PYTHONPATH=path, PQUANT_ALLOW="dying_trials", DYING="1")
    assert [trial.state.name for trial in study.trials()] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    assert "Terminated" in study.trials()[1].user_attrs["failure"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
def test_the_workers_of_a_killed_study_end_and_their_trials_run_again(study: Study, tmp_path: Path) -> None:
    joblib = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "finetuning.num_trials=3"]
    callback = ["+hydra.callbacks.lasting._target_=dying_trials.Lasting"]
    path, notes = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "finetuning")]), tmp_path / "notes"
    environment = {"PYTHONPATH": path, "PQUANT_ALLOW": "dying_trials", "NOTES": str(notes)}
    notes.mkdir()
    with started(ROOT / "run.py", study.folder, *joblib, *callback, **environment, SECONDS="300") as process:
        while len(numbers(notes)) < 2:
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    workers = [Path("/proc", note.name.partition("-")[2]) for note in notes.iterdir()]
    deadline = time.monotonic() + 60
    while any(worker.exists() for worker in workers):
        assert time.monotonic() < deadline, "workers go on without their study"
        time.sleep(0.1)
    run(ROOT / "run.py", study.folder, *joblib, *callback, **environment, SECONDS="0")
    assert numbers(notes) == [0, 0, 1, 1, 2] and [trial.state.name for trial in study.trials()] == ["COMPLETE"] * 3

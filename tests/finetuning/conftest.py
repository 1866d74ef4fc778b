"""A study in this process, with jobs that compute their metrics at once instead of training."""

import csv
import runpy
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest

from pquant.experiment import Experiment, Run

ROOT = Path(__file__).parents[2]
EPOCHS = 4
LENGTHS = ["training.pretraining_epochs=1", f"training.epochs={EPOCHS - 1}", "training.fine_tuning_epochs=0"]


def metrics_of(config: dict[str, Any]) -> dict[str, float]:
    """Return smooth metrics whose best learning rate is 4e-3: accuracy grows with the bits, and so do EBOPs."""
    lr, bits = config["optimizer"]["lr"], config["quantization"]["default_weight_fractional_bits"]
    return {"val/accuracy": 1 - abs(lr - 4e-3) * 50 - 1 / 2 ** (bits + 1), "ebops": 1000.0 * bits, "sparsity": lr, "wall_seconds": 1.0}


@dataclass
class FakeJobs:
    """What stands in for ``Experiment.run``: remembers the configurations and calls ``before`` with each trial's number first;
    the accuracy of the trials in ``nan`` is none."""

    before: Callable[[int], None] = lambda number: None
    nan: set[int] = field(default_factory=set)
    runs: list[Run] = field(default_factory=list)

    def __call__(self, experiment: Experiment, run: Run, callback: Callable[[dict[str, Any]], None]) -> dict[str, float]:
        self.runs.append(run)
        self.before(int(run.folder.name))
        metrics = metrics_of(run.config)
        for epoch in range(1, EPOCHS + 1):
            callback({"epoch": epoch, "seconds": 2.0, "val/accuracy": metrics["val/accuracy"] * epoch / EPOCHS, "ebops": metrics["ebops"]})
        return metrics | ({"val/accuracy": float("nan")} if int(run.folder.name) in self.nan else {})

    @property
    def numbers(self) -> list[int]:
        """The trials run, in order."""
        return [int(run.folder.name) for run in self.runs]


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> FakeJobs:
    fake = FakeJobs()
    monkeypatch.setattr(Experiment, "run", lambda experiment, run, callback: fake(experiment, run, callback))
    return fake


@dataclass
class Study:
    """A study's folder and how to start it."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    multirun: bool = True

    def start(self, *overrides: str) -> None:
        """Run the command in this process; errors end it as they end the command."""
        sweep = ["-m", "tracker=none", "progress=quiet", *LENGTHS, f"hydra.sweep.dir={self.folder}"] if self.multirun else []
        self.monkeypatch.setattr(sys, "argv", ["run.py", *sweep, *overrides])
        self.monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        runpy.run_path(str(ROOT / "run.py"), run_name="__main__")

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """Return what the storage has."""
        [summary] = optuna.get_all_study_summaries(f"sqlite:///{self.folder / 'study.db'}")
        return optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{self.folder / 'study.db'}").trials

    def rows(self) -> list[dict[str, str]]:
        """Return trials.csv."""
        return list(csv.DictReader((self.folder / "trials.csv").open()))

    def results(self) -> dict[str, Any]:
        """Return optimization_results.yaml."""
        import yaml

        loaded: dict[str, Any] = yaml.safe_load((self.folder / "optimization_results.yaml").read_text())
        return loaded


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    return Study(tmp_path / "study", monkeypatch)

"""Engines that run studies: each is started, used and stopped for these tests alone."""

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENGINES = Path(__file__).parent
MINUTES = 60
COMMAND = ["tracker=none", "progress=plain", "finetuning=random", "finetuning.storage=study.journal", "finetuning.early_stopping.type=null"]
TRAINING = ["training.pretraining_epochs=0", "training.fine_tuning_epochs=0", "training.compile=false", "training.threads=1"]


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 3 * MINUTES) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds:.0f} seconds for {what}"
        time.sleep(0.2)


def rows(file: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file, none if there is no file."""
    return list(csv.DictReader(file.open())) if file.is_file() else []


@dataclass
class Study:
    """A study of ``run.py`` in a folder, and the environment of its command."""

    folder: Path
    epochs: int
    environment: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def started(self, *overrides: str) -> Iterator[subprocess.Popen[str]]:
        """Start the command; its output goes to the file ``said``."""
        command = [sys.executable, str(ROOT / "run.py"), "-m", *COMMAND, *TRAINING, f"training.epochs={self.epochs}"]
        variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **self.environment}
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "said").open("w") as said:
            process = subprocess.Popen(
                [*command, f"hydra.sweep.dir={self.folder}", *overrides],
                cwd=ROOT,
                stdout=said,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, **variables},
            )
            try:
                yield process
            finally:
                process.kill()
                process.wait()

    def run(self, *overrides: str, status: int = 0, seconds: float = 8 * MINUTES) -> None:
        """Run the command to its end."""
        with self.started(*overrides) as process:
            assert process.wait(timeout=seconds) == status, self.said

    @property
    def said(self) -> str:
        """What the command printed."""
        return (self.folder / "said").read_text()

    def trained(self, trial: int) -> int:
        """Return how many epochs a trial has behind it."""
        return len(rows(self.folder / str(trial) / "metrics.csv"))

    def wait_for_epoch(self, trial: int, epoch: int) -> None:
        """Wait until a trial has trained some epochs."""
        wait_for(lambda: self.trained(trial) >= epoch, f"epoch {epoch} of trial {trial}")
        assert self.trained(trial) < self.epochs, "the trial is over already"

    def check_complete(self, count: int) -> None:
        """Check that each of ``count`` trials is complete, once, and has each of its epochs once."""
        trials = rows(self.folder / "trials.csv")
        assert [(row["number"], row["state"]) for row in trials] == [(str(number), "complete") for number in range(count)], self.said
        for number in range(count):
            epochs = [row["epoch"] for row in rows(self.folder / str(number) / "metrics.csv")]
            assert epochs == [str(epoch) for epoch in range(1, self.epochs + 1)], f"trial {number}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark all tests of this folder."""
    for item in items:
        if ENGINES in item.path.parents:
            item.add_marker(pytest.mark.engines)

"""A disk that is full or read-only ends a run with one line that names the file, and what is there stays whole."""

import csv
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from pquant.tracking.files import MetricsCsv, write_atomic
from pquant.training.checkpoint import load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
SHORT = ["training.pretraining_epochs=0", "training.epochs=2", "training.fine_tuning_epochs=0", "tracker=none", "progress=quiet"]


class Disk:
    """A file on a disk that takes ``room`` bytes more."""

    def __init__(self, file, room: int) -> None:
        self.file, self.room = file, room

    def write(self, content) -> int:
        self.file.write(content[: self.room])
        if len(content) > self.room:
            self.file.flush()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return len(content)

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch):
    """Return a call after which files that are opened to be written take 10 bytes."""
    import pquant.tracking.files as files

    return lambda: monkeypatch.setattr(files, "open", lambda *args, **options: Disk(open(*args, **options), 10), raising=False)


def test_a_checkpoint_that_does_not_fit_leaves_the_last_two(tmp_path: Path, full) -> None:
    path = tmp_path / "checkpoint.pt"
    for position in (1, 2):
        save_checkpoint(path, {"position": position})
    before = sorted(os.listdir(tmp_path))
    full()
    with pytest.raises(OSError, match="No space left on device") as caught:
        save_checkpoint(path, {"position": 3})
    assert caught.value.filename == str(path) and sorted(os.listdir(tmp_path)) == before
    assert load_checkpoint(path) == {"position": 2}


def test_a_row_that_does_not_fit_is_not_there_in_part(tmp_path: Path, full) -> None:
    metrics = MetricsCsv(tmp_path / "metrics.csv")
    metrics.append({"epoch": 1, "loss": 0.123456789012345})
    before = metrics.path.read_bytes()
    full()
    with pytest.raises(OSError, match="No space left on device"):
        metrics.append({"epoch": 2, "loss": 0.123456789012345})
    assert metrics.path.read_bytes() == before


def test_a_new_file_that_does_not_fit_is_not_there(tmp_path: Path, full) -> None:
    full()
    with pytest.raises(OSError, match="No space left on device"):
        write_atomic(tmp_path / "report.html", "x" * 100)
    assert os.listdir(tmp_path) == []


def run(*overrides: str, largest: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run with files of at most ``largest`` bytes: each write beyond fails, as on a full disk."""
    limit = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))) if largest else None
    command = [sys.executable, "run.py", *SHORT, *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, preexec_fn=limit, env=environment)


@pytest.mark.slow
def test_a_run_whose_checkpoint_does_not_fit_says_so_in_one_line(tmp_path: Path) -> None:
    done = run(f"hydra.run.dir={tmp_path}", largest=20_000)
    assert done.returncode == 1 and done.stderr == f"error: File too large: {tmp_path / 'checkpoint.pt'}\n"
    assert json.loads((tmp_path / "status.json").read_text()) == {"status": "failed"}
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.glob("checkpoint*"))
    assert run("resume=auto", f"hydra.run.dir={tmp_path}").returncode == 0
    with (tmp_path / "metrics.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 2


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["/proc/run", "/sys/run"])
def test_a_folder_that_takes_no_files_is_one_line(folder: str) -> None:
    done = run(f"hydra.run.dir={folder}")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("error: ") and folder in done.stderr

"""Four processes share a study, one of them is killed, and the storage is a file or a server that restarts: no trial is lost or run twice."""

import csv
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import pytest

from .postgres import PASSWORD, Postgres, running

pytestmark = pytest.mark.engines
ROOT = Path(__file__).parents[2]
FAKE = ROOT / "tests" / "finetuning" / "fake_run.py"
TRIALS, PROCESSES = 60, 4


@pytest.fixture(params=["study.db", "study.journal", "postgresql"])
def server(request: pytest.FixtureRequest) -> Iterator[Postgres | str]:
    if request.param == "postgresql" and not find_spec("psycopg"):
        pytest.skip("needs the extra postgres")
    with running() if request.param == "postgresql" else nullcontext(request.param) as there:
        yield there


def start(folder: Path, notes: Path, storage: str, log: Path) -> subprocess.Popen[bytes]:
    settings = [
        "-m",
        "finetuning=random",
        f"finetuning.num_trials={TRIALS}",
        "finetuning.early_stopping.type=null",
        f"finetuning.storage='{storage}'",
    ]
    command = [sys.executable, str(FAKE), "-m", *settings, "tracker=none", "progress=quiet", f"hydra.sweep.dir={folder}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NOTES": str(notes), "DATABASE_PASSWORD": PASSWORD}
    with log.open("wb") as file:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)


def wait_for(notes: Path, begun: int) -> None:
    deadline = time.monotonic() + 600
    while len(list(notes.iterdir())) < begun:
        assert time.monotonic() < deadline, f"{len(list(notes.iterdir()))} of {begun} trials have begun"
        time.sleep(0.05)


def test_no_trial_is_lost_or_run_twice(server: Postgres | str, tmp_path: Path) -> None:
    folder, notes = tmp_path / "study", tmp_path / "notes"
    notes.mkdir()
    storage = server if isinstance(server, str) else server.url
    logs = [tmp_path / f"log-{index}" for index in range(PROCESSES)]
    processes = [start(folder, notes, storage, log) for log in logs]
    try:
        wait_for(notes, 10)
        killed = int(next(notes.iterdir()).name.partition("-")[2])
        [victim] = [process for process in processes if process.pid == killed]
        victim.kill()
        victim.wait()
        if isinstance(server, Postgres):
            server.stop()
            time.sleep(2)
            server.start()
        codes = [process.wait(timeout=900) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert sorted(codes) == [-9, 0, 0, 0], "\n".join(log.read_text()[-2000:] for log in logs)
    rows = list(csv.DictReader((folder / "trials.csv").open()))
    assert [(int(row["number"]), row["state"]) for row in rows] == [(number, "complete") for number in range(TRIALS)]
    runs = [(int(number), int(process)) for number, _, process in (note.name.partition("-") for note in notes.iterdir())]
    assert {number for number, _ in runs} == set(range(TRIALS))
    twice = {number for number, count in Counter(number for number, _ in runs).items() if count > 1}
    assert len(twice) <= 1 and all((number, killed) in runs for number in twice), "the trial of the killed process alone runs again"
    assert len({process for _, process in runs}) == PROCESSES
    holding = [path for path in folder.rglob("*") if path.is_file() and PASSWORD.encode() in path.read_bytes()]
    assert not holding and not any(PASSWORD in log.read_text() for log in logs)

"""``python run.py`` killed at random moments, writes among them, goes on with ``resume=auto`` to the same files, bit for bit."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "killed_run.py"
METHODS = {
    "none": [],
    "cs": [],
    "dst": [],
    "pdp": [],
    "wanda": ["pruning.t_start_collecting_batch=2", "pruning.t_delta=4"],
    "autosparse": ["pruning.autotune_epochs=2", "pruning.alpha_reset_epoch=3"],
    "activation_pruning": ["pruning.t_start_collecting_batch=2", "pruning.t_delta=4"],
    "mdmm": [],
    "magnitude": [],
}
BITS = {"fixed": [], "hgq": ["quantization.hgq_beta_schedule=[[0,1e-6],[3,1e-4]]", "training.pareto=true"]}
SCHEDULE = ["pretraining_epochs=1", "epochs=2", "rounds=2", "fine_tuning_epochs=1", "rewind=every-round", "save_weights_epoch=1", "batch_size=512"]
COMMAND = ["tracker=none", "progress=quiet", "model.sizes=[null,8,null]", "resume=auto", *(f"training.{setting}" for setting in SCHEDULE)]
KILLS = 12


class Server:
    """Makes runs, each a process of its own, without importing torch for each."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(SCRIPT)]
        self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        self.kills = 0

    def run(self, folder: Path, overrides: list[str], kill_after: int = 0, seconds_more: float = 0.0) -> int:
        """Run in ``folder``; return the number of changes of files there, 0 of a run that was killed."""
        arguments = [*COMMAND, *overrides, f"hydra.run.dir={folder}"]
        asked = {"arguments": arguments, "watched": str(folder), "kill_after": kill_after, "seconds_more": seconds_more}
        assert self.process.stdin and self.process.stdout
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        killed = answer["exit"] == -signal.SIGKILL
        assert killed and kill_after or answer["exit"] == 0, arguments
        self.kills += killed
        return 0 if killed else answer["changes"]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server()
    yield server
    assert server.process.stdin
    server.process.stdin.close()
    server.process.wait()


def left(folder: Path) -> dict[str, Any]:
    """Return all that a run leaves in its folder but times."""
    summary = json.loads((folder / "summary.json").read_text())
    with (folder / "metrics.csv").open() as file:
        rows = [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    same = [
        folder / "model.safetensors",
        folder / "model.json",
        folder / "teacher.safetensors",
        *sorted(folder.glob("pareto*/*")),
        *folder.glob("pareto.*"),
    ]
    whole = {path.name: path.read_bytes() for path in same if path.is_file()}
    return {"summary": {key: value for key, value in summary.items() if key != "wall_seconds"}, "rows": rows, "files": files} | whole


def kill(overrides: list[str], name: str, server: Server, tmp_path: Path) -> None:
    """Run once in peace, and once with kills at moments that ``name`` draws; compare what both leave."""
    changes = server.run(tmp_path / "whole", overrides)
    assert changes > 20
    moments, before = random.Random(name), server.kills
    while server.kills < before + KILLS:
        server.run(tmp_path / "killed", overrides, moments.randint(1, changes), moments.choice([0.0, moments.uniform(0, 0.1)]))
    server.run(tmp_path / "killed", overrides)
    whole, killed = left(tmp_path / "whole"), left(tmp_path / "killed")
    assert killed.keys() == whole.keys()
    for name, content in whole.items():
        assert killed[name] == content, name


@pytest.mark.slow
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(method: str, bits: str, server: Server, tmp_path: Path) -> None:
    kill([f"pruning={method}", *METHODS[method], f"quantization={bits}", *BITS[bits]], f"{method} {bits}", server, tmp_path)


@pytest.mark.slow
def test_so_does_a_run_that_ends_stages_early_and_selects_the_best_epoch(server: Server, tmp_path: Path) -> None:
    lengths = [f"training.{setting}" for setting in ("pretraining_epochs=6", "fine_tuning_epochs=6", "patience=1", "select=best")]
    kill(["pruning=magnitude", "pruning.sparsity=0.3", "optimizer.lr=0.5", *lengths], "selection", server, tmp_path)
    summary = json.loads((tmp_path / "killed" / "summary.json").read_text())
    assert summary["epochs"] < summary["planned_epochs"] and summary["selected_epoch"] > 0


@pytest.mark.slow
def test_so_does_a_run_with_a_teacher(server: Server, tmp_path: Path) -> None:
    kill(["pruning=dst", "distillation=teacher", "distillation.features=[layers.1]"], "teacher", server, tmp_path)
    assert (tmp_path / "killed" / "teacher.safetensors").is_file()

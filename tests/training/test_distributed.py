import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TWO = [*TORCHRUN, "--standalone", "--nproc-per-node", "2"]
COMMON = [
    "tracker=none",
    "progress=quiet",
    "training.epochs=3",
    "training.pretraining_epochs=1",
    "training.fine_tuning_epochs=1",
    "training.threads=1",
]
METHODS = {
    "wanda": ["pruning=wanda", "pruning.t_start_collecting_batch=3", "pruning.t_delta=10"],
    "activation": ["pruning=activation_pruning", "pruning.t_start_collecting_batch=3", "pruning.t_delta=10"],
    **{name: [f"pruning={name}"] for name in ("cs", "dst", "pdp", "autosparse", "mdmm", "magnitude")},
    "dst-hgq": ["pruning=dst", "quantization=hgq"],
    "hgq": ["pruning=none", "quantization=hgq", "quantization.hgq_beta=1e-6"],
    "teacher": ["pruning=dst", "distillation=teacher", "distillation.features=[layers.1]"],
    "compiled": ["pruning=dst", "quantization=hgq", "training.compile=true"],
    "selection": ["pruning=magnitude", "training.select=best", "training.patience=1", "training.monitor=loss", "optimizer.lr=0.05"],
    "wrap": ["pruning=none", "quantization=hgq", "quantization.overflow_mode_data=WRAP"],
}
MAY_DIFFER = {"cs": 0.001}
"""Share of the weights whose masks the order of sums may change: those of CS are at a threshold when it freezes them."""


def train(folder: Path, launcher: list[str], overrides: list[str]) -> dict:
    command = [*launcher, str(ROOT / "run.py"), f"hydra.run.dir={folder}", *COMMON, *overrides]
    done = subprocess.run(command, cwd=folder.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads((folder / "summary.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_what_one_does(method: str, tmp_path: Path) -> None:
    overrides = [*METHODS[method], "training.batch_size=100"]
    alone = train(tmp_path / "alone", [sys.executable], overrides)
    both = train(tmp_path / "both", TWO, overrides)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("alone", "both"))
    assert one.keys() == two.keys()
    weights = [name for name in one if name.endswith("weight")]
    assert weights
    if METHODS[method][0] != "pruning=none":
        differing = sum(int(((one[name] == 0) != (two[name] == 0)).sum()) for name in weights)
        assert differing <= MAY_DIFFER.get(method, 0) * sum(one[name].numel() for name in weights)
    assert abs(alone["val/accuracy"] - both["val/accuracy"]) < 0.02 and abs(alone["sparsity"] - both["sparsity"]) < 0.01


@pytest.mark.slow
def test_batch_norms_agree_with_one_process_only_where_they_are_synchronized(tmp_path: Path) -> None:
    norms = ["pruning=none", "quantization=none", "model.batch_norm=true", "training.batch_size=100", "optimizer=sgd"]
    alone = train(tmp_path / "alone", [sys.executable], norms)
    apart = train(tmp_path / "apart", TWO, norms)
    synchronized = train(tmp_path / "synchronized", TWO, [*norms, "training.sync_batch_norm=true"])
    compiled = train(tmp_path / "compiled", TWO, [*norms, "training.sync_batch_norm=true", "training.compile=true"])
    assert synchronized["val/loss"] == pytest.approx(alone["val/loss"], rel=0.01)
    assert compiled["val/loss"] == pytest.approx(synchronized["val/loss"], rel=1e-4)
    assert abs(apart["val/loss"] - alone["val/loss"]) > 2 * abs(synchronized["val/loss"] - alone["val/loss"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", [[], ["compiled"]], ids=["transformer", "compiled"])
def test_a_large_model_adds_up_gradients_during_backward_and_trains_what_one_process_does(kind: list[str], tmp_path: Path) -> None:
    script = str(ROOT / "tests" / "training" / "large_model.py")
    for name, launcher in (("one", [sys.executable]), ("two", TWO)):
        command = [*launcher, script, str(tmp_path / name), *kind]
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = load_file(tmp_path / "one"), load_file(tmp_path / "two")
    assert one.keys() == two.keys() and sum(value.numel() for value in one.values()) > 1_000_000
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


def rank_of(pid: int) -> str | None:
    """Return the rank of a process of torchrun."""
    try:
        variables = dict(one.split("=", 1) for one in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in one)
    except OSError:
        return None
    return variables.get("RANK")


def epochs(folder: Path) -> list[str]:
    file = folder / "metrics.csv"
    return [row["epoch"] for row in csv.DictReader(file.open())] if file.is_file() else []


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
@pytest.mark.parametrize("dies", ["0", "1"])
def test_a_rank_that_dies_ends_the_run_with_one_line_and_a_resume_goes_on(dies: str, tmp_path: Path) -> None:
    folder, length = tmp_path / "run", ["training.pretraining_epochs=0", "training.epochs=60", "training.fine_tuning_epochs=0"]
    command = [*TWO, str(ROOT / "run.py"), f"hydra.run.dir={folder}", "resume=auto", *COMMON, *length, "training.compile=false"]
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(command, cwd=tmp_path, stdout=said, stderr=said)
    while len(epochs(folder)) < 5:
        assert process.poll() is None, (tmp_path / "said").read_text()
        time.sleep(0.1)
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()
    (pid,) = [int(child) for child in children if rank_of(int(child)) == dies]
    os.kill(pid, signal.SIGKILL)
    assert process.wait(timeout=120) != 0
    text, other = (tmp_path / "said").read_text(), 1 - int(dies)
    lost = [f"error: process {other} of 2: another process has ended or does not answer"]
    # torchrun's signal may come first
    lost.append("interrupted; python run.py resume=" if other == 0 else "process 1 of 2: interrupted by SIGTERM")
    lines = [line for line in text.splitlines() if any(one in line for one in lost)]
    assert len(lines) == 1 and "resume" in lines[0], text
    before_torchrun = text.partition('  File "<frozen runpy>"')[0]
    assert 'File "' not in before_torchrun.partition("error: ")[0]
    assert f'File "{ROOT / "run.py"}"' not in text, "a traceback of a rank"
    done = len(epochs(folder))
    assert 5 <= done < 60
    resumed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert resumed.returncode == 0 and epochs(folder) == [str(number) for number in range(1, 61)], resumed.stderr[-2000:]
    assert json.loads((folder / "status.json").read_text()) == {"status": "finished"}


@pytest.mark.slow
def test_two_nodes_meet_at_an_address(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    rendezvous = [
        "--nnodes=2",
        "--nproc-per-node=1",
        "--rdzv-id=job",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint=127.0.0.1:{port}",
        "--local-addr=127.0.0.1",
    ]
    overrides = [f"hydra.run.dir={tmp_path / 'run'}", *COMMON, "pruning=dst"]
    nodes = [
        subprocess.Popen([*TORCHRUN, *rendezvous, str(ROOT / "run.py"), *overrides], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for node in nodes:
        said = node.communicate(timeout=240)[1]
        assert node.returncode == 0, said[-2000:]
    assert epochs(tmp_path / "run") == ["1", "2", "3", "4", "5"]

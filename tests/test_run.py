"""``run.py`` as a user runs it."""

import csv
import html
import json
import os
import resource
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import pquant
from pquant.config import build_experiment
from pquant.export import load_weights
from pquant.layers import finalize
from pquant.models import MLP
from pquant.pruning import DST

ROOT = Path(__file__).parents[1]
SHORT = ["training.pretraining_epochs=1", "training.epochs=2", "training.fine_tuning_epochs=1", "progress=plain"]
FILES = ["summary.json", "metrics.csv", "checkpoint.pt", "model.safetensors", "model.json", "report.html", ".hydra/config.yaml"]
FIGURES = """test/accuracy test/loss sparsity params nonzero_params ebops weight_bits size_bytes epochs wall_seconds seed config_hash
git_commit version/torch""".split()


LIGHT = """import runpy, sys; runpy.run_path('run.py', run_name='__main__')
heavy = {'wandb', 'mlflow', 'sklearn', 'ray', 'optuna'} & sys.modules.keys()
assert not heavy, heavy"""


def run(
    *overrides: str, check: bool = True, script: tuple[str, ...] = ("run.py",), cwd: Path = ROOT, **environment: str
) -> subprocess.CompletedProcess[str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PQUANT", "HYDRA"))}
    command = [sys.executable, *script, *overrides]
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell has what runs in its background ignore it
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=variables | environment, timeout=300, preexec_fn=heard)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short default run with offline W&B and a float baseline."""
    path = tmp_path_factory.mktemp("run") / "first"
    run(*SHORT, "training.baseline=true", f"hydra.run.dir={path}")
    return path


def test_a_run_leaves_every_file_and_figure(folder: Path) -> None:
    assert [name for name in FILES if not (folder / name).is_file()] == []
    summary = json.loads((folder / "summary.json").read_text())
    assert [name for name in [*FIGURES, "float/accuracy"] if name not in summary] == []
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [row["stage"] for row in rows] == ["pretrain", "train", "train", "finetune"]
    layers = json.loads((folder / "model.json").read_text())["layers"]
    assert layers[0]["shape"] == [64, 64] and layers[0]["quantizers"]["weight_quantizer"]["f"] == 7
    assert list((folder / "wandb").glob("offline-run-*"))


def test_the_saved_weights_are_the_finalized_model(folder: Path) -> None:
    experiment = build_experiment(OmegaConf.load(folder / ".hydra" / "config.yaml"))
    splits = experiment.data.load(experiment.seed)
    net = MLP([None, 64, 32, 32, None], input_shape=(64,), num_outputs=10)
    x, y = splits.test.tensors
    model = finalize(pquant.compress(net, DST(), experiment.quantization, x[:4]))
    load_weights(model, folder / "model.safetensors")
    accuracy = (model(x).argmax(1) == y).float().mean().item()
    assert accuracy == pytest.approx(json.loads((folder / "summary.json").read_text())["test/accuracy"], abs=1e-6)
    steps = model.layers[0].weight * 2**7
    assert torch.equal(steps, steps.round())


def test_one_seed_gives_the_same_figures_twice_with_or_without_wandb(folder: Path, tmp_path: Path) -> None:
    overrides = [*SHORT, "training.baseline=true", "tracker=none", f"hydra.run.dir={tmp_path / 'second'}"]
    printed = run(*overrides, script=("-c", LIGHT)).stdout
    both = [json.loads((path / "summary.json").read_text()) for path in (folder, tmp_path / "second")]
    for summary in both:
        del summary["wall_seconds"], summary["config_hash"]
    assert both[0] == both[1]
    for word in ("Accuracy", "Sparsity", "EBOPs", "Time", "Files"):
        assert word in "\n".join(printed.splitlines()[-10:])


def test_a_killed_run_resumes_to_the_same_end(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "killed"
    lines = ["import os", "class Killer:", "    def start(self, folder, config): pass", "    def log(self, row): row['epoch'] != 2 or os._exit(9)"]
    (tmp_path / "tests_killer.py").write_text("\n".join(lines))
    environment = {"PQUANT_ALLOW": "tests_killer", "PYTHONPATH": str(tmp_path)}
    killed = run(*SHORT, f"hydra.run.dir={path}", "~tracker", "+tracker._target_=tests_killer.Killer", check=False, **environment)
    assert killed.returncode == 9
    run(f"resume={path}", "tracker=none", f"hydra.run.dir={tmp_path / 'log'}")
    ended, whole = (json.loads((one / "summary.json").read_text()) for one in (path, folder))
    same = ["test/accuracy", "test/loss", "val/loss", "sparsity", "ebops", "nonzero_params", "epochs"]
    assert {name: ended[name] for name in same} == {name: whole[name] for name in same}


@pytest.mark.parametrize(("name", "code"), [pytest.param("SIGTERM", 143, marks=pytest.mark.slow), ("SIGINT", 130)])
def test_an_interrupted_run_says_so_and_goes_on_by_itself(name: str, code: int, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "interrupted"
    lines = ["import os, signal", "class Sender:", "    def start(self, folder, config): pass", "    def finish(self, status): print('end:', status)"]
    lines += ["    def summary(self, figures): pass", f"    def log(self, row): row['epoch'] != 2 or os.kill(os.getpid(), signal.{name})"]
    (tmp_path / "tests_sender.py").write_text("\n".join(lines))
    environment = {"PQUANT_ALLOW": "tests_sender", "PYTHONPATH": str(tmp_path)}
    command = [*SHORT, "training.baseline=true", "resume=auto", f"hydra.run.dir={path}"]
    stopped = run(*command, "~tracker", "+tracker._target_=tests_sender.Sender", check=False, **environment)
    assert stopped.returncode == code and "end: interrupted" in stopped.stdout and "Traceback" not in stopped.stderr
    assert json.loads((path / "status.json").read_text()) == {"status": "interrupted"}
    assert len(list(csv.DictReader((path / "metrics.csv").open()))) == 2
    other = run(*command, "optimizer.lr=0.1", "tracker=none", check=False)
    assert other.returncode == 1 and "started with other settings" in other.stderr and len(other.stderr.splitlines()) == 1
    run(*command, "tracker=none")
    ended, whole = (json.loads((one / "summary.json").read_text()) for one in (path, folder))
    same = ["test/accuracy", "test/loss", "val/loss", "sparsity", "ebops", "nonzero_params", "epochs"]
    assert {key: ended[key] for key in same} == {key: whole[key] for key in same}
    assert json.loads((path / "status.json").read_text()) == {"status": "finished"}


@pytest.mark.slow
def test_any_model_of_a_rising_beta_is_finalized_later(tmp_path: Path) -> None:
    rising = ["quantization=hgq", "quantization.hgq_beta_schedule=[[0,1e-7],[4,1e-3]]", "quantization.hgq_lr=0.1", "training.epochs=4"]
    run(*SHORT, *rising, "tracker=none", f"hydra.run.dir={tmp_path / 'rising'}")
    with (tmp_path / "rising" / "pareto.csv").open() as file:
        front = list(csv.DictReader(file))
    assert len(front) > 1
    for point in (front[0], front[-1]):
        epoch, again = point["epoch"], tmp_path / f"from_{point['epoch']}"
        run(f"from_run={tmp_path / 'rising'}", f"from_epoch={epoch}", "tracker=none", f"hydra.run.dir={again}")
        summary = json.loads((again / "summary.json").read_text())
        assert (summary["ebops"], summary["val/accuracy"]) == (float(point["ebops"]), float(point["val/accuracy"]))
        assert summary["epochs"] == int(epoch) and (again / "model.safetensors").is_file()
    last = tmp_path / "last"
    run(f"from_run={tmp_path / 'rising'}", "tracker=none", f"hydra.run.dir={last}")
    ended, whole = (json.loads((one / "summary.json").read_text()) for one in (last, tmp_path / "rising"))
    assert all(ended[name] == whole[name] for name in ("test/accuracy", "ebops", "sparsity", "epochs"))
    refused = run("from_epoch=3", f"hydra.run.dir={tmp_path / 'none'}", check=False)
    assert refused.returncode == 1 and "from_epoch needs from_run" in refused.stderr


def test_the_report_of_an_earlier_model_has_its_baseline_and_the_command_as_given(folder: Path, tmp_path: Path) -> None:
    run(f"from_run={folder}", "tracker=none", f"hydra.run.dir={tmp_path / 'a b'}")
    ended, whole = (json.loads((one / "summary.json").read_text()) for one in (tmp_path / "a b", folder))
    assert ended["float/accuracy"] == whole["float/accuracy"]
    page = html.unescape((tmp_path / "a b" / "report.html").read_text())
    assert f"python run.py from_run={folder} tracker=none 'hydra.run.dir={tmp_path}/a b'" in page
    assert all(part in page for part in ("float baseline", "Predictions on the test set", "as finalized, pruned and quantized"))


def test_dry_run_lists_the_layers_and_trains_nothing(tmp_path: Path) -> None:
    printed = run("dry_run=true", "pruning.disable_pruning_for_layers=[layers.6]", f"hydra.run.dir={tmp_path}").stdout
    assert all(name in printed for name in ("layers.0", "layers.6", "PQDense", "DST"))
    assert next(line for line in printed.splitlines() if "layers.6" in line).count("DST") == 0
    assert not (tmp_path / "checkpoint.pt").exists()


def test_errors_are_one_line_and_come_before_training(tmp_path: Path) -> None:
    done = run("pruning.disable_pruning_for_layers=[layers.9]", f"hydra.run.dir={tmp_path}", check=False)
    assert done.returncode == 1
    assert "did you mean 'layers.6'" in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "metrics.csv").exists()


WRONG = {
    "prunning=dst": "did you mean 'pruning'",
    "training.epocs=3": "did you mean 'epochs'",
    "pruning.max_pruning_pct=1.7": "DST.max_pruning_pct must be in (0, 1], got 1.7",
    "training.baseline='False'": "training.baseline: must be true or false, got 'False'",
    "+data.tset_fraction=0.1": "tset_fraction",
    "training.rewind=every-round": "Training.save_weights_epoch",
}
NOTED_FIRST = {"run.log", "multirun.yaml", ".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"}
SECONDS = 5.0


def refused(folder: Path, *overrides: str) -> str:
    """Return the one line that a command ends with, in ``SECONDS`` of a processor, before it writes anything but what Hydra notes first."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(*SHORT, *overrides, f"hydra.run.dir={folder}", f"hydra.sweep.dir={folder}", check=False, OMP_NUM_THREADS="1")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stdout + done.stderr
    assert {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} <= NOTED_FIRST
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < SECONDS
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("override", WRONG)
def test_what_is_wrong_leaves_one_line_and_no_file_but_what_hydra_notes_first(override: str, tmp_path: Path) -> None:
    assert WRONG[override] in refused(tmp_path / "run", override)

"""The best epoch in the life of a run: its files, its console, what starts from its folder, and a resume."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from pquant.training.checkpoint import load_checkpoint

from ..command_server import Commands

SMALL = ["tracker=none", "progress=plain", "model.sizes=[null,8,null]", "training.batch_size=256", "pruning=magnitude", "quantization=none"]
CHOICE = ["training.select=best", "training.monitor=loss", "training.patience=2", "optimizer.lr=0.3", "training.baseline=true"]
COMMAND = [*SMALL, *CHOICE, "training.pretraining_epochs=12", "training.epochs=2", "training.fine_tuning_epochs=12", "training.pareto=true"]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found


@pytest.fixture(scope="module")
def whole(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("best") / "run"
    done = commands(*COMMAND, f"hydra.run.dir={folder}")
    assert done.code == 0, done.out + done.err
    return folder, done.out


def test_files_console_and_report_say_which_epoch_it_is(whole: tuple[Path, str]) -> None:
    folder, out = whole
    found, kept = summary(folder), rows(folder)
    reached = [row for row in kept if row["stage"] != "pretrain" and float(row["sparsity"]) >= 0.79]
    best = min(reached, key=lambda row: float(row["val/loss"]))
    assert found["selected_epoch"] == int(best["epoch"]) != int(kept[-1]["epoch"])
    assert found["val/loss"] == pytest.approx(float(best["val/loss"]), rel=1e-5)
    assert found["epochs"] == len(kept) < found["planned_epochs"] == 26
    line = f"{len(kept)} of 26 epochs, the model is that of epoch {found['selected_epoch']}"
    assert line in out and line in (folder / "report.html").read_text()
    assert f"epoch {kept[-1]['epoch']:>2}/26" in out
    assert found["float/accuracy"] > 0


def test_from_run_evaluates_the_best_epoch_and_from_epoch_its_own(whole: tuple[Path, str], commands: Commands, tmp_path: Path) -> None:
    folder, _ = whole
    done = commands(f"from_run={folder}", "tracker=none", f"hydra.run.dir={tmp_path / 'again'}")
    assert done.code == 0, done.out + done.err
    first, again = (safetensors.torch.load_file(place / "model.safetensors") for place in (folder, tmp_path / "again"))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert summary(tmp_path / "again")["selected_epoch"] == summary(folder)["selected_epoch"]
    epoch = sorted(int(path.stem.partition("_")[2]) for path in (folder / "pareto").glob("epoch_*.pt"))[0]
    done = commands(f"from_run={folder}", f"from_epoch={epoch}", "tracker=none", f"hydra.run.dir={tmp_path / 'epoch'}")
    assert done.code == 0, done.out + done.err
    found = summary(tmp_path / "epoch")
    assert "selected_epoch" not in found and found["epochs"] == sum(int(row["epoch"]) <= epoch for row in rows(folder))


def test_another_run_starts_from_the_weights_of_the_best_epoch(whole: tuple[Path, str], commands: Commands, tmp_path: Path) -> None:
    folder, _ = whole
    none = [f"training.{stage}=0" for stage in ("pretraining_epochs", "epochs", "fine_tuning_epochs")]
    done = commands(*SMALL, *none, "pruning=none", "scheduler=constant", f"init_from={folder}", f"hydra.run.dir={tmp_path / 'next'}")
    assert done.code == 0, done.out + done.err
    state, started = load_checkpoint(folder / "checkpoint.pt"), safetensors.torch.load_file(tmp_path / "next" / "model.safetensors")
    weights = [name for name in started if name.endswith("weight")]
    assert weights and all(torch.equal(started[name], state["best"]["model"][name]) for name in weights)
    assert any(not torch.equal(started[name], state["state"]["model"][name]) for name in weights)


def test_a_resumed_run_is_bit_identical(whole: tuple[Path, str], commands: Commands, tmp_path: Path) -> None:
    folder, _ = whole
    short = tmp_path / "run"
    shutil.copytree(folder, short)
    for name in ("summary.json", "report.html", "model.safetensors"):
        (short / name).unlink()
    shutil.copy(short / "checkpoint.previous.pt", short / "checkpoint.pt")
    done = commands(*COMMAND, "resume=auto", f"hydra.run.dir={short}")
    assert done.code == 0 and "resuming after epoch" in done.out, done.out + done.err
    assert (short / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert [{**row, "seconds": ""} for row in rows(short)] == [{**row, "seconds": ""} for row in rows(folder)]
    assert {**summary(short), "wall_seconds": 0} == {**summary(folder), "wall_seconds": 0}

"""The worked example of docs/add_a_method.md, as it stands there."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import pquant

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add_a_method.md").read_text()
SHORT = ["training.pretraining_epochs=1", "training.epochs=4", "training.fine_tuning_epochs=1", "tracker=none", "progress=plain"]


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found.group(1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mine")
    (path / "my_package.py").write_text(block("python"))
    return path


def test_the_lines_of_the_page_run(folder: Path) -> None:
    lines = block("bash").splitlines()
    assert lines[0].startswith("export ") and sum("run.py" in line for line in lines) == 2
    for number, (name, sparsity) in enumerate([("given", 0.9), ("file", 0.9)]):
        line = [line for line in lines if "run.py" in line][number]
        setup = [line for line in lines if "run.py" not in line]
        job = line.replace("python run.py", f"{sys.executable} {ROOT / 'run.py'}")
        script = "\n".join(["set -e", *setup, " ".join([job, *SHORT, f"hydra.run.dir={folder / name}"])])
        done = subprocess.run(["bash", "-c", script], cwd=folder, capture_output=True, text=True, timeout=120, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
        summary = json.loads((folder / name / "summary.json").read_text())
        assert summary["mask_sparsity"] == pytest.approx(sparsity, abs=1e-3)


def test_the_method_keeps_the_promises_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    from my_package import Gradual

    with pytest.raises(pquant.errors.ConfigError, match=re.escape("Gradual.sparsity must be in [0, 1], got 1.7")):
        Gradual(sparsity=1.7)
    model = pquant.compress(torch.nn.Linear(10, 10), Gradual(sparsity=0.5, ramp=0.5))
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(epochs=4, steps_per_epoch=1))
    reached = []
    for _ in range(4):
        pquant.on_epoch_end(model)
        reached.append(pquant.sparsity(model))
    assert reached == pytest.approx([0.44, 0.5, 0.5, 0.5])
    again = pquant.compress(torch.nn.Linear(10, 10), Gradual(sparsity=0.5, ramp=0.5))
    again.load_state_dict(model.state_dict())
    assert again.pruner.epoch == 4 and pquant.sparsity(again) == 0.5


def test_every_question_in_the_table_is_one_of_a_pruner() -> None:
    from pquant.pruning.method import Pruner

    for name in (
        "train_weight",
        "train_mask",
        "train_penalty",
        "fold",
        "prune_bias",
        "needs",
        "observe",
        "on_batch_end",
        "on_epoch_end",
        "on_round_end",
    ):
        assert name in PAGE and hasattr(Pruner, name)

"""The worked example of docs/add_a_data_source.md, as it stands there."""

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
PAGE = (ROOT / "docs" / "add_a_data_source.md").read_text()
SHORT = "training.pretraining_epochs=0 training.epochs=2 training.fine_tuning_epochs=0 tracker=none progress=plain"


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert found
    return found.group(1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_data.py").write_text(block("python"))
    return tmp_path


def test_the_lines_of_the_page_run(folder: Path) -> None:
    lines = block("bash").splitlines()
    jobs = [line for line in lines if "run.py" in line]
    assert len(jobs) == 2
    for number, job in enumerate(jobs):
        command = job.replace("python run.py", f"{sys.executable} {ROOT / 'run.py'}")
        script = ["set -e", *(line for line in lines if "run.py" not in line), f"{command} {SHORT} hydra.run.dir={folder / str(number)}"]
        done = subprocess.run(["bash", "-c", "\n".join(script)], cwd=folder, capture_output=True, text=True, timeout=120, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads((folder / str(number) / "summary.json").read_text())["test/accuracy"] > 0.5


def test_the_source_keeps_the_promises_of_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_data", raising=False)
    from my_data import Moons

    message = re.search(r"`(Moons\.noise must be .*?)`", PAGE)
    assert message
    with pytest.raises(pquant.errors.ConfigError, match=re.escape(message.group(1))):
        Moons(noise=-1.0)
    splits, again = Moons(examples=100).load(3), Moons(examples=100).load(3)
    assert torch.equal(splits.train.tensors[0], again.train.tensors[0])
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [70, 10, 20]
    assert (splits.classes, splits.features, splits.num_classes) == (("upper", "lower"), ("x", "y"), 2)
    assert splits.train.tensors[0].mean(0).abs().max() < 1e-5

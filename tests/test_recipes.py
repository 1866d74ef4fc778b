"""Every command of docs/recipes.md runs: as it stands, but short, dry, or on a run made here."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from pquant.report import main as report

from .command_server import Commands

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "recipes.md").read_text()
RECIPES = dict(re.findall(r"^## (.+?)\n\n```bash\n(.*?)\n```", PAGE, re.DOTALL | re.MULTILINE))
EARLIER = "outputs/2026-01-31/12-00-00"
SHORT = ["training.pretraining_epochs=1", "training.epochs=2", "training.fine_tuning_epochs=1", "tracker=none", "progress=plain"]


class Recipe(NamedTuple):
    """What a test adds to a command, and what shows that it did its work: words of its output, or a file in its folder."""

    more: list[str]
    shows: str
    module: str = "torch"


DRY = ["dry_run=true"]
HOW = {
    "Prune to 80 % with Wanda": Recipe(DRY, "Wanda"),
    "Train bit widths to a budget of EBOPs": Recipe(SHORT, "summary.json"),
    "Find bits for a model size": Recipe(DRY, "64 x 64"),
    "Search hyperparameters": Recipe([*SHORT, "training.pretraining_epochs=0", "training.fine_tuning_epochs=0"], "trials.csv"),
    "Keep the best epoch and stop early": Recipe(SHORT, "model is that of epoch"),
    "Resume an interrupted run": Recipe(["tracker=none", "progress=plain"], "resuming after epoch 4"),
    "Export Verilog": Recipe(["tracker=none", "progress=plain"], "export/rtl", "alkaid"),
    "Export an hls4ml project": Recipe(["tracker=none", "progress=plain"], "export/hls4ml", "hls4ml"),
    "Train on your own data": Recipe(DRY, "64 x 3"),
    "Train on your own images": Recipe(SHORT, "summary.json"),
    "Train on weighted events": Recipe(SHORT, "summary.json"),
    "Train your own model": Recipe(DRY, "32 x 64"),
    "Distil a larger model": Recipe(DRY, "16 x 64"),
    "Compare runs": Recipe([], "2 runs compared"),
}


@pytest.fixture(scope="module")
def earlier(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    done = commands(*SHORT, "model.sizes=[null,8,null]", f"hydra.run.dir={folder}")
    assert done.code == 0, done.out + done.err
    return folder


def test_each_recipe_has_one_command_and_a_test() -> None:
    assert len(RECIPES) >= 10 and RECIPES.keys() == HOW.keys()
    assert RECIPES.keys() == set(re.findall("^## (.+)$", PAGE, re.MULTILINE))
    assert all("\n" not in command for command in RECIPES.values())


@pytest.mark.parametrize("goal", [goal for goal, command in RECIPES.items() if command.startswith("python run.py")])
def test_the_command_runs(goal: str, commands: Commands, earlier: Path, tmp_path: Path) -> None:
    how = HOW[goal]
    pytest.importorskip(how.module)
    (tmp_path / "mine.csv").write_text("\n".join(["a,b,y,w", *(f"{index % 7},{index % 5},{'uv'[index % 2]},{index % 3}" for index in range(60))]))
    np.savez(tmp_path / "images.npz", x=np.random.default_rng(0).integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), y=np.arange(60) % 3)
    line = RECIPES[goal].replace(EARLIER, str(earlier))
    for name in ("mine.csv", "images.npz"):
        line = line.replace(name, str(tmp_path / name))
    words = shlex.split(line)
    place = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
    done = commands(*words[2:], *how.more, *([] if "resume=" in RECIPES[goal] else [f"{place}={tmp_path / 'run'}"]))
    assert done.code == 0, done.out + done.err
    assert how.shows in done.out or (tmp_path / "run" / how.shows).exists(), done.out + done.err


def test_wanda_reaches_its_sparsity(commands: Commands, tmp_path: Path) -> None:
    done = commands(*shlex.split(RECIPES["Prune to 80 % with Wanda"])[2:], *SHORT, f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.out + done.err
    assert json.loads((tmp_path / "summary.json").read_text())["mask_sparsity"] == pytest.approx(0.8, abs=0.01)


def test_a_network_of_ones_own(tmp_path: Path) -> None:
    found = re.search(r"^```python\n(.*?)^```", (ROOT / "docs" / "quickstart.md").read_text(), re.DOTALL | re.MULTILINE)
    assert found
    (tmp_path / "my_net.py").write_text(found.group(1))
    how = HOW["Train your own model"]
    line = RECIPES["Train your own model"].replace("python run.py", f"{sys.executable} {ROOT / 'run.py'}")
    job = f"{line} {' '.join(how.more)} hydra.run.dir={tmp_path / 'run'}"
    done = subprocess.run(["bash", "-c", job], cwd=tmp_path, capture_output=True, text=True, timeout=120, env=os.environ | {"COLUMNS": "120"})
    assert done.returncode == 0 and how.shows in done.stdout, done.stdout + done.stderr


def test_the_report_compares_the_runs(earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    other = shutil.copytree(earlier, tmp_path / "other")
    report([str(earlier), str(other)])
    assert HOW["Compare runs"].shows in capsys.readouterr().out and (tmp_path / "compare.html").is_file()
    assert RECIPES["Compare runs"].startswith("python -m pquant.report ")

"""The wheel, installed into an empty environment and used in an empty folder."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pquant.installation import VERSION

ROOT = Path(__file__).parents[1]
SHORT = ["tracker=none", "progress=quiet", "training.pretraining_epochs=0", "training.epochs=1", "training.fine_tuning_epochs=0"]
METHOD = """from dataclasses import dataclass
from pquant.pruning import Magnitude

@dataclass(frozen=True)
class Half(Magnitude):
    sparsity: float = 0.5
"""


def site_packages() -> Path:
    """Return the folder that holds the dependencies, and of this package at most a link, which nothing follows from another environment."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the ``bin`` of an environment with the wheel, and the dependencies of this one."""
    pytest.importorskip("hatchling")
    place = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place], cwd=ROOT, check=True, capture_output=True)
    [wheel] = place.glob("pquant_hydra-*.whl")
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    pip = [place / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--disable-pip-version-check"]
    subprocess.run([*pip, wheel], check=True)
    [own] = (place / "venv").glob("lib/python*/site-packages")
    (own / "dependencies.pth").write_text(f"{site_packages()}\n")
    return place / "venv" / "bin"


def call(environment: Path, folder: Path, *command: str, **variables: str) -> str:
    """Run a command of the environment in a folder; return what it prints."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PQUANT", "HYDRA", "PYTHON"))}
    done = subprocess.run(
        [environment / command[0], *command[1:]], cwd=folder, capture_output=True, text=True, env=kept | variables, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_runs_a_job_with_the_users_configuration_on_top(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "conf" / "pruning").mkdir(parents=True)
    (tmp_path / "conf" / "pruning" / "half.yaml").write_text("defaults:\n  - wanda\n  - _self_\nsparsity: 0.5\n")
    call(environment, tmp_path, "pquant", "pruning=half", *SHORT, "hydra.run.dir=a")
    sources = (tmp_path / "a" / ".hydra" / "hydra.yaml").read_text()
    assert "path: pquant.conf\n      schema: pkg" in sources and f"path: {tmp_path / 'conf'}" in sources
    assert json.loads((tmp_path / "a" / "summary.json").read_text())["sparsity"] == pytest.approx(0.5, abs=0.02)
    assert "pquant pruning=half" in (tmp_path / "a" / "report.html").read_text() and "run.py" not in (tmp_path / "a" / "report.html").read_text()


@pytest.mark.slow
def test_sweeps_reports_experiments_and_own_methods_work(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    call(environment, tmp_path, "pquant", "-m", "seed=0,1", *SHORT, "hydra.sweep.dir=sweep")
    printed = call(environment, tmp_path, "python", "-m", "pquant.report", "sweep")
    assert printed.startswith("2 runs compared in") and (tmp_path / "sweep" / "compare.html").is_file()

    study = ["-m", "finetuning=random", "finetuning.num_trials=2", *SHORT, "hydra.sweep.dir=study"]
    call(environment, tmp_path, "python", "-m", "pquant", *study)
    assert len(list(csv.DictReader((tmp_path / "study" / "trials.csv").open()))) == 2

    own = ["pruning=magnitude", "pruning._target_=mine.Half", "experiment=digits_methods/base", "hydra.run.dir=own"]
    call(environment, tmp_path, "pquant", *own, *SHORT, PQUANT_ALLOW="mine", PYTHONPATH=str(tmp_path))
    assert (tmp_path / "own" / "model.safetensors").is_file()
    assert "mine.Half" in (tmp_path / "own" / ".hydra" / "config.yaml").read_text()


@pytest.mark.slow
def test_the_wheel_is_typed_and_tells_how_to_add_an_extra(environment: Path, tmp_path: Path) -> None:
    asked = "import pquant; from pquant import installation; print(pquant.__version__, pquant.__file__); print(installation.extra('rtl'))"
    version_and_file, hint = call(environment, tmp_path, "python", "-c", asked).splitlines()
    version, _, file = version_and_file.partition(" ")
    assert version == VERSION and Path(file).is_relative_to(environment.parent) and (Path(file).parent / "py.typed").is_file()
    assert hint.startswith("pip install 'pquant-hydra[rtl] @ file://") and hint.endswith(".whl'")
    assert "pquant pruning=wanda" in call(environment, tmp_path, "pquant", "--help")

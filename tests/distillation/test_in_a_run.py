"""A teacher in the life of a run: with every stage and method, from every source, and bit for bit the same after a resume."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from omegaconf import OmegaConf

from pquant.errors import ConfigError, StoppedEarly
from pquant.resume import Run
from pquant.training.checkpoint import load_checkpoint

from ..command_server import Commands
from ..test_config import build

ROOT = Path(__file__).parents[2]
SMALL = ["progress=quiet", "model.sizes=[null,8,null]", "training.batch_size=256"]
SHORT = [*SMALL, "training.pretraining_epochs=1", "training.epochs=2", "training.fine_tuning_epochs=1"]
TAUGHT = [*SHORT, "distillation=teacher"]
SERVERS: list[Commands] = []


@pytest.fixture(scope="module", autouse=True)
def server(commands: Commands) -> Iterator[None]:
    SERVERS.append(commands)
    yield
    SERVERS.clear()


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return build(*overrides).run(Run(folder, {}, "test"))


def command(folder: Path, *overrides: str, code: int = 0) -> str:
    done = SERVERS[0](*overrides, "tracker=none", f"hydra.run.dir={folder}")
    assert done.code == code, done.out + done.err
    return done.err if code else done.out


def rows(folder: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader((folder / "metrics.csv").open())]


def ended(folder: Path) -> tuple[Any, ...]:
    """Return all that must be the same after a resume: weights, metrics, and what the summary says but for times and the command's settings."""
    summary = json.loads((folder / "summary.json").read_text())
    return (folder / "model.safetensors").read_bytes(), rows(folder), {k: v for k, v in summary.items() if k not in ("wall_seconds", "config_hash")}


METHODS = ["none", "cs", "dst", "pdp", "wanda", "autosparse", "activation_pruning", "mdmm", "magnitude"]
QUANTIZATIONS = ["none", "fixed", "hgq"]
PAIRS = [
    pytest.param(method, quantization, marks=[] if index % 3 == number else pytest.mark.slow)
    for index, method in enumerate(METHODS)
    for number, quantization in enumerate(QUANTIZATIONS)
]


@pytest.mark.parametrize(("method", "quantization"), PAIRS)
def test_every_method_and_quantization_trains_with_a_teacher(method: str, quantization: str, tmp_path: Path) -> None:
    summary = run(tmp_path, *TAUGHT, f"pruning={method}", f"quantization={quantization}", "distillation.features=[layers.0]")
    found = rows(tmp_path)
    assert [row["stage"] for row in found] == ["pretrain", "train", "train", "finetune"]
    assert all(float(row["train/distillation"]) > 0 for row in found) and "float/accuracy" in summary
    assert not [name for name in safetensors.torch.load_file(tmp_path / "model.safetensors") if "teacher" in name]


def test_the_float_baseline_is_the_teacher_and_has_its_metric(tmp_path: Path) -> None:
    taught = run(tmp_path / "taught", *TAUGHT, "pruning=none")
    alone = run(tmp_path / "alone", *SHORT, "pruning=none", "training.baseline=true")
    assert taught["float/accuracy"] == alone["float/accuracy"] and taught["float/loss"] == alone["float/loss"]
    assert not (tmp_path / "alone" / "teacher.safetensors").exists() and "train/distillation" not in rows(tmp_path / "alone")[0]
    assert taught["test/loss"] != alone["test/loss"]


@pytest.mark.parametrize("quantization", ["none", "hgq"])
def test_a_weight_of_0_ends_as_the_run_without_a_teacher(quantization: str, tmp_path: Path) -> None:
    common = [f"quantization={quantization}", "training.baseline=true"]
    run(tmp_path / "taught", *TAUGHT, *common, "distillation.weight=0")
    run(tmp_path / "alone", *SHORT, *common)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("taught", "alone"))
    assert one == two


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(["pruning=none", "quantization=none"], marks=pytest.mark.slow),
        ["pruning=dst", "quantization=hgq"],
        pytest.param(["pruning=pdp", "quantization.default_data_integer_bits=auto"], marks=pytest.mark.slow),
        pytest.param(
            [
                "pruning=none",
                "fitcompress=on",
                "fitcompress.optimize_pruning=true",
                "fitcompress.fisher.max_iterations=4",
                "fitcompress.fisher.min_iterations=4",
            ],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["float", "hgq", "auto", "fitcompress"],
)
def test_the_finalized_model_of_a_run_teaches_another(kind: list[str], tmp_path: Path) -> None:
    first = tmp_path / "first"
    command(first, *SHORT, *kind, "model.sizes=[null,12,null]")
    experiment = build(*SHORT, "distillation=teacher", f"distillation.source={first}")
    splits = experiment.data.load(experiment.seed)
    float_model = experiment.build_model(splits)
    distiller = experiment.distillation.distiller(float_model, float_model, splits, experiment.training, None)
    x, y = splits.test.tensors
    accuracy = float((distiller.teacher.module(x).argmax(1) == y).float().mean())
    assert accuracy == pytest.approx(json.loads((first / "summary.json").read_text())["test/accuracy"], abs=1e-6)
    for seed in (0, 1):
        printed = command(tmp_path / "second", *TAUGHT, f"distillation.source={first}", f"seed={seed}")
        assert ("the teacher's run had seed 0 and this one has 1" in printed) is bool(seed)
    assert float(rows(tmp_path / "second")[0]["train/distillation"]) > 0


def killed(folder: Path, tmp_path: Path, *overrides: str) -> None:
    """Start a run that is killed after its second epoch."""
    text = "import os\nclass Killer:\n    def start(self, folder, config): pass\n    def log(self, row): row['epoch'] != 2 or os._exit(9)\n"
    (tmp_path / "distillation_killer.py").write_text(text)
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("WANDB", "PQUANT", "HYDRA"))}
    variables |= {"PQUANT_ALLOW": "distillation_killer", "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    given = [*overrides, f"hydra.run.dir={folder}", "tracker=none", "tracker._target_=distillation_killer.Killer"]
    done = subprocess.run([sys.executable, "run.py", *given], cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 9, done.stderr
    assert load_checkpoint(folder / "checkpoint.pt")["position"] == 2


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path / "source"
    command(folder, *SHORT, "quantization=none", "model.sizes=[null,12,null]")
    return folder


@pytest.mark.parametrize("kind", [pytest.param("float", marks=pytest.mark.slow), "run", pytest.param("file", marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_end_without_its_source(kind: str, source: Path, tmp_path: Path) -> None:
    module = build("model.sizes=[null,12,null]").model(input_shape=(64,), num_outputs=10)
    safetensors.torch.save_file(module.state_dict(), source / "own.safetensors")
    own = "distillation.model={_target_: pquant.models.MLP, _partial_: true, sizes: [null, 12, null]}"
    chosen = {
        "float": ["distillation.features=[layers.0]"],
        "run": [f"distillation.source={source}", "distillation.temperature=4"],
        "file": [f"distillation.source={source / 'own.safetensors'}", own],
    }
    given = [*TAUGHT, "pruning=dst", *chosen[kind]]
    command(tmp_path / "whole", *given)
    killed(tmp_path / "killed", tmp_path, *given)
    shutil.rmtree(source)
    command(tmp_path / "log", f"resume={tmp_path / 'killed'}")
    assert ended(tmp_path / "killed") == ended(tmp_path / "whole")
    command(tmp_path / "log", f"from_run={tmp_path / 'killed'}")
    command(tmp_path / "longer", f"resume={tmp_path / 'killed'}", "training.fine_tuning_epochs=2")
    assert len(rows(tmp_path / "longer")) == 5 and float(rows(tmp_path / "longer")[4]["train/distillation"]) > 0
    assert (tmp_path / "longer" / "teacher.safetensors").read_bytes() == (tmp_path / "killed" / "teacher.safetensors").read_bytes()


def test_a_changed_teacher_is_refused_in_one_line_and_changes_nothing(tmp_path: Path) -> None:
    killed(tmp_path / "killed", tmp_path, *TAUGHT)
    path = tmp_path / "killed" / "teacher.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["layers.0.weight"][0, 0] += 1
    safetensors.torch.save_file(tensors, path)
    before = (tmp_path / "killed" / "checkpoint.pt").read_bytes()
    line = command(tmp_path / "log", f"resume={tmp_path / 'killed'}", code=1)
    assert len(line.splitlines()) == 1 and "cannot go on with another teacher" in line
    path.unlink()
    line = command(tmp_path / "log", f"resume={tmp_path / 'killed'}", code=1)
    assert len(line.splitlines()) == 1 and "cannot go on without its teacher" in line
    assert (tmp_path / "killed" / "checkpoint.pt").read_bytes() == before


def test_another_teacher_is_no_resume(tmp_path: Path) -> None:
    command(tmp_path / "run", *TAUGHT)
    line = command(tmp_path / "run", *TAUGHT, "distillation.temperature=4", "resume=auto", code=1)
    assert "distillation.temperature = 2.0 instead of 4.0" in line


def test_errors_come_before_training(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown layer of the teacher 'layer.0': did you mean 'layers.0'"):
        run(tmp_path, *TAUGHT, "distillation.features=[layer.0]")
    assert list(tmp_path.iterdir()) == []
    assert run(tmp_path, *TAUGHT, "dry_run=true") == {} and list(tmp_path.iterdir()) == []


def test_a_regression_is_taught_the_teachers_outputs(tmp_path: Path) -> None:
    x = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    lines = ["a,b,c,d,y", *(",".join(f"{value:.4f}" for value in [*row.tolist(), float(row.sum())]) for row in x)]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    pytest.importorskip("pandas")
    given = ["data=table", f"data.path={tmp_path / 't.csv'}", "data.target=y"]
    summary = run(tmp_path / "run", *TAUGHT, *given, "training.batch_size=32")
    assert summary["float/rmse"] > 0 and float(rows(tmp_path / "run")[0]["train/distillation"]) > 0


def test_the_search_of_fitcompress_uses_the_tasks_loss(tmp_path: Path) -> None:
    given = ["fitcompress=on", "fitcompress.fisher.min_iterations=4", "fitcompress.fisher.max_iterations=4", "distillation.stages=[train,finetune]"]
    run(tmp_path / "taught", *TAUGHT, *given, "pruning=none", "distillation.features=[layers.0]")
    run(tmp_path / "alone", *SHORT, *given[:3], "pruning=none")
    one, two = ((tmp_path / name / "fitcompress.json").read_text() for name in ("taught", "alone"))
    assert json.loads(one)["layers"] == json.loads(two)["layers"]


def test_a_trial_that_is_stopped_keeps_its_teacher(tmp_path: Path) -> None:
    def stop(row: dict[str, Any]) -> None:
        raise StoppedEarly

    with pytest.raises(StoppedEarly):
        build(*TAUGHT).run(Run(tmp_path, {}, "test"), stop)
    assert load_checkpoint(tmp_path / "checkpoint.pt")["teacher"] and (tmp_path / "teacher.safetensors").is_file()


def test_a_folder_from_before_there_were_teachers_resumes(tmp_path: Path) -> None:
    command(tmp_path / "run", *SHORT)
    file = tmp_path / "run" / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    del config["distillation"]
    OmegaConf.save(config, file)
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (tmp_path / "run" / name).unlink()
    command(tmp_path / "log", f"resume={tmp_path / 'run'}")
    assert len(rows(tmp_path / "run")) == 4


def test_a_baseline_is_trained_beside_rounds_that_rewind(tmp_path: Path) -> None:
    rounds = ["training.rounds=2", "training.rewind=every-round", "training.save_weights_epoch=1"]
    summary = run(tmp_path, *TAUGHT, *rounds, "pruning=cs")
    assert summary["epochs"] == 6 and summary["float/accuracy"] > 0

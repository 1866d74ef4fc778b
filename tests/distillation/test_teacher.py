"""The settings of a teacher: each has an effect or is refused, and a teacher that cannot teach is refused before training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.utils.data import TensorDataset

import pquant
from pquant.config import CONFIGURATION_ERRORS, explain
from pquant.data import Splits
from pquant.distillation import NoDistillation, Teacher
from pquant.distillation.source import Kept, keep, load_teacher
from pquant.errors import ConfigError
from pquant.training import Training

from ..test_config import build, refusal
from .test_losses import data, net, taught

LENGTHS = Training(pretraining_epochs=1, epochs=1, fine_tuning_epochs=1, batch_size=16)


def weights(path: Path, module: nn.Module) -> str:
    safetensors.torch.save_file(module.state_dict(), path)
    return str(path)


def trained(**fields: Any) -> dict[str, Any]:
    run = taught(Teacher(**fields))
    run.fit(lambda row: None)
    return dict(run.model.named_parameters())


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 4.0},
        {"weight": 0.9},
        {"features": ["0"]},
        {"features": {"0": "1"}},
        {"features": ["0"], "feature_weight": 0.1},
        {"stages": ["train"]},
        {"stages": ["pretrain", "finetune"]},
    ],
    ids=str,
)
def test_each_field_has_an_effect(fields: dict[str, Any]) -> None:
    without = {"features": ["0"]} if "feature_weight" in fields else {}
    one, two = trained(**without), trained(**fields)
    assert not torch.equal(one["0.weight"], two["0.weight"])


def test_a_weight_of_0_trains_as_no_teacher_does() -> None:
    run = taught(NoDistillation())
    run.fit(lambda row: None)
    found = trained(weight=0.0)
    assert all(torch.equal(value, found[name]) for name, value in run.model.named_parameters())


@pytest.mark.parametrize(
    ("fields", "classes", "lines"),
    [
        ({}, 3, []),
        ({"temperature": 4.0}, 3, []),
        ({"temperature": 4.0}, None, ["distillation.temperature = 4 has no effect on a regression"]),
        ({"feature_weight": 2.0}, 3, ["distillation.feature_weight = 2 has no effect without distillation.features"]),
        ({"weight": 0}, 3, ["the teacher has no effect: distillation.weight is 0, and no features count"]),
        ({"weight": 0, "features": ["0"]}, 3, []),
        ({"weight": 0, "features": ["0"], "feature_weight": 0}, 3, ["the teacher has no effect: distillation.weight is 0, and no features count"]),
    ],
)
def test_settings_without_effect_are_warned_of(fields: dict[str, Any], classes: int | None, lines: list[str]) -> None:
    assert Teacher(**fields).warnings(data(classes)) == lines


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("distillation.temperature=0", ["Teacher.temperature must be in (0, inf), got 0"]),
        ("distillation.temperature=-1", ["Teacher.temperature must be in (0, inf), got -1"]),
        ("distillation.weight=1.5", ["Teacher.weight must be in [0, 1], got 1.5"]),
        ("distillation.feature_weight=-1", ["Teacher.feature_weight must be in [0, inf), got -1"]),
        ("distillation.features=layers.1", ["Teacher.features must be a list of layers' names, or a dictionary", "got 'layers.1'"]),
        ("distillation.features=[1]", ["Teacher.features must be a list", "got [1]"]),
        ("distillation.features={layers.1: null}", ["Teacher.features must be a list"]),
        ("distillation.stages=[]", ["Teacher.stages must be some of pretrain, train, finetune, got []"]),
        ("distillation.stages=[pretain]", ["distillation.stages", "pretain"]),
        ("distillation.source=''", ["Teacher.source must be 'float', the folder of a run or a file .safetensors, got ''"]),
        ("distillation.source=w.safetensors", ["Teacher.model must be the module whose weights w.safetensors holds, such as '${model}', got None"]),
        ("distillation.model=${model}", ["Teacher.model must be null unless source is a file .safetensors"]),
        ("distillation.model={_target_: os.system}", ["'os.system' (model)"]),
        ("distillation._target_=torch.nn.Linear", ["'torch.nn.Linear' (distillation)", "a Settings of pquant.distillation"]),
        ("distillation.temprature=2", ["'temprature'", "did you mean 'temperature'"]),
    ],
)
def test_wrong_settings_are_refused_in_one_line(override: str, parts: list[str]) -> None:
    line = refusal("distillation=teacher", override)
    assert "\n" not in line and all(part in line for part in parts), line


def test_a_teachers_model_is_checked_as_the_model_is() -> None:
    given = ["distillation=teacher", "distillation.source=w.safetensors"]
    line = refusal(*given, "distillation.model={_target_: pquant.models.MLP, _partial_: true, sizes: [null, 8, null], batch_norm: 'False'}")
    assert "distillation.model.batch_norm must be true or false, got 'False'" in line
    section = build(*given, "distillation.model=${model}").distillation
    assert isinstance(section, Teacher) and section.model.func is pquant.models.MLP


def test_a_choice_that_there_is_not_is_refused() -> None:
    assert "did you mean 'teacher'" in refusal("distillation=techer")


def distiller(section: Teacher, splits: Splits | None = None, training: Training = LENGTHS, kept: Kept | None = None) -> Any:
    splits = splits or data()
    float_model = net(splits.num_outputs)
    return section.distiller(pquant.compress(float_model, None, None, splits.train[:4][0]), float_model, splits, training, kept)


def run_folder(path: Path, *, model: bool, sections: str = "model: {_target_: torch.nn.Linear, in_features: 6, out_features: 3}\n") -> Path:
    (path / ".hydra").mkdir(parents=True)
    (path / ".hydra" / "config.yaml").write_text(sections)
    if model:
        weights(path / "model.safetensors", nn.Linear(6, 3))
    return path


def linear(tmp: Path, inputs: int = 6, outputs: int = 3) -> dict[str, Any]:
    module = nn.Linear(inputs, outputs)
    return {"source": weights(tmp / "w.safetensors", module), "model": nn.Linear(inputs, outputs)}


CASES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "student's layer": (lambda tmp: {"features": ["1", "22"]}, r"distillation.features: unknown layer of the teacher '22'.*valid: 0, 1, 2, 3, 4"),
    "teacher's layer": (lambda tmp: linear(tmp) | {"features": ["0"]}, "unknown layer of the teacher '0'; valid: none"),
    "student's layer by name": (lambda tmp: {"features": {"layer.0": "0"}}, "unknown layer of the student 'layer.0'"),
    "shapes": (
        lambda tmp: {"features": {"0": "4"}},
        r"student's layer '0', \(2, 8\), and of the teacher's layer '4', \(2, 3\), must have the same shape",
    ),
    "outputs": (lambda tmp: linear(tmp, outputs=5), r"the teacher gives a tensor of shape \(2, 5\) for 2 examples, the data needs \(2, 3\)"),
    "inputs": (lambda tmp: linear(tmp, inputs=7), "the teacher does not take the data: .*mat1 and mat2"),
    "no file": (
        lambda tmp: {"source": str(tmp / "none.safetensors"), "model": nn.Linear(6, 3)},
        "distillation.source: there is no file .*none.safetensors",
    ),
    "other weights": (lambda tmp: linear(tmp) | {"model": net()}, r"the weights in .*w.safetensors do not fit the model: .*Missing key.*0.weight"),
    "other shapes": (lambda tmp: linear(tmp) | {"model": nn.Linear(6, 4)}, "do not fit the model: .*size mismatch for weight"),
    "no run": (lambda tmp: {"source": str(tmp / "nowhere")}, "distillation.source must be the folder of an earlier run, with .hydra/config.yaml"),
    "no model": (lambda tmp: {"source": str(run_folder(tmp / "r", model=False))}, "has no model.safetensors, as it did not finish: resume it first"),
    "no sections": (lambda tmp: {"source": str(run_folder(tmp / "r", model=True))}, "the configuration of .* has no section 'pruning'"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_teacher_that_cannot_teach_is_refused(case: str, tmp_path: Path) -> None:
    fields, message = CASES[case]
    with pytest.raises(ConfigError, match=message) as caught:
        distiller(Teacher(**fields(tmp_path)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("section", "message"), [("model", "reads the environment variable 'SECRET'"), ("tracker", "has no section 'model'")])
def test_the_environment_is_not_read_for_the_model_of_a_teacher(section: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cret")
    folder = run_folder(tmp_path / "r", model=True, sections=f"{section}: {{a: '${{oc.env:SECRET}}'}}\n")
    with pytest.raises(CONFIGURATION_ERRORS) as caught:
        distiller(Teacher(source=str(folder)))
    assert message in explain(caught.value) and "s3cret" not in explain(caught.value)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    for content in (b"", b"half", b"\x80\x04pickle" * 9):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="cannot be read as safetensors"):
            distiller(Teacher(source=str(path), model=nn.Linear(6, 3)))


def test_stages_without_epochs_are_refused() -> None:
    lengths = Training(pretraining_epochs=0, epochs=1, fine_tuning_epochs=0)
    with pytest.raises(ConfigError, match=r"Teacher.stages must be a stage that has epochs in this run \(train\), got \['pretrain', 'finetune'\]"):
        distiller(Teacher(stages=["pretrain", "finetune"]), training=lengths)
    assert distiller(Teacher(), training=lengths).metrics
    with pytest.raises(ConfigError, match=r"in this run \(none\)"):
        distiller(Teacher(), training=Training(pretraining_epochs=0, epochs=0))


def test_a_layer_that_gives_no_tensor_is_refused() -> None:
    class Twin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.used = nn.Linear(6, 3), nn.Linear(6, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    student = Twin()
    with pytest.raises(ConfigError, match="distillation.features: layer 'unused' of the teacher gives no tensor for the data"):
        Teacher(features=["unused"]).distiller(pquant.compress(student), student, data(), LENGTHS, None)


def test_the_student_stays_as_it_is_before_training() -> None:
    float_model = net()
    student = pquant.compress(float_model, None, None, data().train[:4][0]).train()
    before, random = {name: value.clone() for name, value in student.state_dict().items()}, torch.get_rng_state()
    Teacher(features=["1"]).distiller(student, float_model, data(), LENGTHS, None)
    assert student.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, student.state_dict()[name]) for name, value in before.items())
    assert all(parameter.requires_grad for parameter in float_model.parameters())


def test_a_kept_teacher_is_the_one_of_the_checkpoint_or_refused(tmp_path: Path) -> None:
    teacher = load_teacher("float", None, net(), data())
    digest = keep(teacher, tmp_path)
    found = distiller(Teacher(), kept=Kept(tmp_path, digest)).teacher
    assert found.digest == digest and found.baseline
    assert all(torch.equal(value, found.module.state_dict()[name]) for name, value in teacher.module.state_dict().items())
    assert keep(found, tmp_path) == digest, "the same bytes again"
    path = tmp_path / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(ConfigError, match="cannot go on with another teacher: .*teacher.safetensors has changed since its checkpoint"):
        distiller(Teacher(), kept=Kept(tmp_path, digest))
    path.unlink()
    with pytest.raises(ConfigError, match="cannot go on without its teacher: there is no .*teacher.safetensors"):
        distiller(Teacher(), kept=Kept(tmp_path, digest))


def test_batches_of_any_shape_of_input_reach_a_teacher() -> None:
    x = torch.randn(8, 1, 4, 4)
    splits = Splits(*[TensorDataset(x, torch.arange(8) % 3)] * 3, num_classes=3)
    float_model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
    student = pquant.compress(float_model, None, None, x)
    found = Teacher(features=["0"]).distiller(student, float_model, splits, LENGTHS, None)
    assert found.teacher_features[0].output is None

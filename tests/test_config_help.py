"""Every field says what it is, and a printed configuration repeats it without changing a value."""

import dataclasses
import importlib
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import pquant
from pquant.config_help import class_of, descriptions, explained, explaining, fields, first_line
from pquant.experiment import Experiment
from pquant.models import MLP
from pquant.pruning import MDMM, Wanda
from pquant.settings import Settings
from pquant.training import Training

ROOT = Path(__file__).parents[1]
REQUIRED = {
    re.split("[<>=]", requirement)[0].replace("-", "_")
    for requirement in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
}
"""Packages that are always installed; modules of an extra may miss theirs."""


def settings_classes() -> list[type]:
    for module in pkgutil.walk_packages(pquant.__path__, "pquant."):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            assert error.name not in REQUIRED and not str(error.name).startswith("pquant"), f"{module.name} cannot be imported"
    found, waiting = [], [Settings]
    while waiting:
        cls = waiting.pop()
        found.append(cls)
        waiting += cls.__subclasses__()
    schemas = {cls for cls in found if "_target_" in cls.__dataclass_fields__}  # since Python 3.12 their module is that of the package
    return sorted({cls for cls in found if cls.__module__.startswith("pquant.")} - schemas - {Settings}, key=lambda cls: cls.__qualname__)


@pytest.mark.parametrize("cls", [*settings_classes(), Experiment], ids=lambda cls: cls.__name__)
def test_every_field_is_described_in_the_docstring_and_nothing_else_is(cls: type) -> None:
    names = {field.name for field in dataclasses.fields(cls)}
    texts = descriptions(cls)
    assert names - texts.keys() == set(), "fields without a line in the docstring's Args"
    assert texts.keys() - names == set(), "lines of the docstring's Args that are no fields"
    assert all(text.strip() for text in texts.values())


def test_a_field_has_its_type_default_range_and_text() -> None:
    by_name = {field.name: field for field in fields(Wanda)}
    sparsity = by_name["sparsity"]
    assert (sparsity.type, sparsity.default, sparsity.range) == ("a number", "0.9", "[0, 1]")
    assert sparsity.description == "fraction of the weights that is pruned."
    assert by_name["M"].type == "an integer or null" and by_name["M"].default == "null" and by_name["M"].range == "[1, inf)"
    assert by_name["disable_pruning_for_layers"].default == "[]"
    assert "one of 'mean', 'sum'" in {field.name: field for field in fields(MDMM)}["scale_mode"].type


def test_nested_settings_have_dotted_names_and_a_subclass_may_say_it_better() -> None:
    names = [field.name for field in fields(Experiment)]
    assert {"fitcompress", "fitcompress.fisher", "fitcompress.fisher.tolerance", "training.epochs"} <= set(names)
    assert "lambda" in descriptions(class_of("pquant.pruning.CS"))["threshold_decay"]
    assert "paper" in descriptions(Wanda)["threshold_decay"]


def test_plain_classes_are_read_from_their_constructors() -> None:
    found = {field.name: field for field in fields(MLP)}
    assert found["batch_norm"].default == "false" and found["sizes"].default == "required"
    assert "self" not in found and class_of("pquant.training.Training.from_config") is Training
    assert first_line(MLP).startswith("Dense layers with an activation")


def test_a_printed_configuration_keeps_its_values_and_explains_every_section() -> None:
    done = subprocess.run([sys.executable, "run.py", "--cfg", "job", "pruning=wanda"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert config["pruning"]["sparsity"] == 0.8
    lines = {line.split(":")[0]: line for line in done.stdout.splitlines() if not line.startswith(" ")}
    assert [name for name in config if "# " not in lines[name]] == []
    assert "  sparsity: 0.8 " in done.stdout and "# fraction of the weights that is pruned." in done.stdout
    silent = [
        key
        for key in config["pruning"]
        if not key.startswith("_") and not any(f"  {key}: " in x.replace("'", "") and "# " in x for x in done.stdout.splitlines())
    ]
    assert silent == []


def test_only_configurations_are_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with explaining(["run.py", "seed=1", "-cn", "other", "--config-name=other"]):
        print("seed: 0")
    assert capsys.readouterr().out == "seed: 0\n"
    with explaining(["run.py", "--cfg=job"]):
        print("seed: 0")
    assert capsys.readouterr().out.startswith("seed: 0   ")
    with pytest.raises(SystemExit), explaining(["run.py", "-c", "job"]):
        print("- a list")
        sys.exit(1)
    assert capsys.readouterr().out == "- a list\n"


@given(
    st.dictionaries(st.sampled_from(["seed", "resume", "data", "other"]), st.one_of(st.text(), st.integers(), st.dictionaries(st.text(), st.text())))
)
def test_comments_never_change_a_value(config: dict) -> None:
    text = yaml.safe_dump(config)
    assert yaml.safe_load(explained(text)) == config


def test_a_section_printed_by_itself_is_explained_too() -> None:
    lines = explained("_target_: pquant.pruning.Wanda\nsparsity: 0.8\n").splitlines()
    assert lines[1].startswith("sparsity: 0.8") and "# fraction of the weights that is pruned" in lines[1]
    foreign = "_target_: os.system\nsparsity: 0.8\n"
    assert explained(foreign) == foreign

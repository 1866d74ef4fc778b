"""What the command line says of itself: help that knows every section and choice, and completion."""

import os
import re
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import pquant.config  # noqa: F401  (registers the schemas)

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
GROUPS = sorted(folder.name for folder in CONF.iterdir() if folder.is_dir() and folder.name not in ("hydra", "experiment"))


def run(*arguments: str, **environment: str) -> str:
    command = [sys.executable, "run.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True, env=os.environ | environment).stdout


@pytest.fixture(scope="module")
def told() -> str:
    return run("--help")


def test_help_fits_a_terminal_and_leaves_no_template_behind(told: str) -> None:
    assert max(map(len, told.splitlines())) <= 125 and len(told.splitlines()) < 60
    assert "$" not in told.replace('"$(python', "")


@pytest.mark.parametrize("group", GROUPS)
def test_help_names_every_section_and_exactly_its_choices(told: str, group: str) -> None:
    line, *rest = told[told.index(f"\n{group} ") + 1 :].splitlines()
    choices = line[46:] + "".join(takewhile(lambda more: more.startswith(" " * 46), rest))
    assert set(choices.split()) == {file.stem for file in (CONF / group).glob("*.yaml")}
    assert line[14:46].strip()


def test_fields_in_help_exist(told: str) -> None:
    with initialize_config_dir(config_dir=str(CONF)):
        config = compose("config")
    section = told.split("== Common fields")[1].split("== More")[0]
    fields = re.findall(r"(?<![\w.])((?:{})\.\w+)".format("|".join(GROUPS)), section)
    assert len(fields) > 6
    assert [name for name in fields if OmegaConf.select(config, name, default="missing") == "missing"] == []


def test_examples_in_help_compose(told: str) -> None:
    examples = [line.split("  ")[0].split()[2:] for line in told.split("== Sections")[0].splitlines() if line.startswith("python run.py")]
    assert len(examples) > 5
    for example in examples:
        with initialize_config_dir(config_dir=str(CONF)):
            compose("config", overrides=[part for part in example if part != "-m" and "," not in part])


@pytest.mark.parametrize(
    ("typed", "offered"), [("pruning=w", ["pruning=wanda", "pruning=wanda_spec"]), ("training.ba", ["training.batch_size=", "training.baseline="])]
)
def test_completion_offers_choices_and_fields(typed: str, offered: list[str]) -> None:
    line = f"python run.py {typed}"
    assert sorted(run("-sc", "query=bash", COMP_LINE=line, COMP_POINT=str(len(line))).split()) == sorted(offered)

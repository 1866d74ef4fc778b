"""The README and the script that pastes its lines know the same lines."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("first_ten_minutes", ROOT / ".ci" / "first_ten_minutes.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_line_of_the_readme_is_run_or_has_a_reason(script: ModuleType) -> None:
    assert script.unknown(README) == []


def test_a_line_more_or_less_is_seen(script: ModuleType) -> None:
    assert script.unknown(README + "\n```bash\npython run.py new=1   # a comment\n```\n") == ["python run.py new=1"]
    assert script.unknown(README.replace("python run.py dry_run=true", "")) == ["python run.py dry_run=true"]


def test_what_is_said_to_be_elsewhere_is_there(script: ModuleType) -> None:
    named = [word for reason in script.ELSEWHERE.values() for word in reason.split() if word.startswith("tests/")]
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_the_block_in_python_is_one(script: ModuleType) -> None:
    compile(script.python_of(README), "README.md", "exec")
    assert "pquant.compress" in script.python_of(README)

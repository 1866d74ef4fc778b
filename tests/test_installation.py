"""The name of the distribution, and hints that install from where this copy came from."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from pquant import installation

ROOT = Path(__file__).parents[1]
SOMEBODY_ELSES = re.compile(r"(?:pip install|uv add)(?: -\S+)* ['\"]?pquant(?![-\w/])")
"""A command that installs ``pquant`` from an index, where that is another project."""


def copy_of(monkeypatch: pytest.MonkeyPatch, place: Path, checkout: bool, installer: str = "pip", origin: object = None) -> None:
    """Let the package be one that was installed so."""
    info = place / "pquant_hydra-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pquant-hydra\nVersion: 0.1.0\n")
    (info / "INSTALLER").write_text(f"{installer}\n")
    if origin is not None:
        (info / "direct_url.json").write_text(json.dumps(origin))
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.setattr(installation, "IS_CHECKOUT", checkout)


@pytest.mark.parametrize(
    ("checkout", "installer", "origin", "command"),
    [
        (True, "uv", {"url": "file:///here", "dir_info": {"editable": True}}, "uv sync --extra rtl"),
        (True, "pip", {"url": "file:///here", "dir_info": {"editable": True}}, "pip install -e '.[rtl]'"),
        (False, "pip", None, "pip install 'pquant-hydra[rtl]'"),
        (False, "uv", None, "uv pip install 'pquant-hydra[rtl]'"),
        (False, "pip", {"url": "file:///a/b.whl", "archive_info": {}}, "pip install 'pquant-hydra[rtl] @ file:///a/b.whl'"),
        (
            False,
            "uv",
            {"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "12ab"}},
            "uv pip install 'pquant-hydra[rtl] @ git+https://a.b/c@12ab'",
        ),
    ],
)
def test_the_hint_follows_from_how_this_copy_was_installed(
    checkout: bool, installer: str, origin: object, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_of(monkeypatch, tmp_path, checkout, installer, origin)
    assert installation.extra("rtl") == command


def test_a_copy_without_metadata_is_installed_as_the_readme_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation, "DISTRIBUTION", "no-such-distribution")
    assert installation.IS_CHECKOUT and installation.extra("onnx") == "uv sync --extra onnx"
    assert "uv sync --extra" in (ROOT / "README.md").read_text()


def test_the_name_and_version_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["name"], project["version"]) == (installation.DISTRIBUTION, installation.VERSION)


def test_no_text_installs_somebody_elses_package() -> None:
    assert SOMEBODY_ELSES.search("pip install 'pquant") and SOMEBODY_ELSES.search("uv pip install pquant[rtl]")
    assert not SOMEBODY_ELSES.search("pip install 'pquant-hydra[rtl]'") and not SOMEBODY_ELSES.search("cd /shared/pquant && pip install -e '.[ray]'")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no checkout of git")
    texts = [name for name in listed.stdout.split("\0") if name.endswith((".py", ".md", ".yaml", ".yml", ".toml", ".ipynb", ".j2", "run"))]
    found = {name for name in texts if (ROOT / name).is_file() and SOMEBODY_ELSES.search((ROOT / name).read_text(encoding="utf-8"))}
    assert found - {"tests/test_installation.py"} == set()


def test_importing_beside_a_package_of_the_same_name_says_so_in_one_line(tmp_path: Path) -> None:
    info = tmp_path / "pquant_ml-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pquant-ml\nVersion: 0.1.0\n")
    importing = f"import sys; sys.path.append({str(tmp_path)!r}); from pquant.installation import warn_of_other_package"
    done = subprocess.run([sys.executable, "-c", importing], cwd=ROOT, capture_output=True, text=True, check=True)
    [line] = done.stderr.splitlines()
    assert line.startswith("pquant-ml is installed in this environment, and its package is called pquant, too")

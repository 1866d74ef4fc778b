import importlib
import os
import platform
import subprocess

import numpy
import pytest

from pquant.tracking import config_hash, environment


def test_environment_names_commit_platform_and_versions():
    found = environment()
    assert list(found) == [
        "git_commit",
        "platform",
        "cpu",
        "cores",
        *(f"version/{name}" for name in ("python", "torch", "numpy", "hydra-core", "omegaconf", "pquant")),
    ]
    assert found["version/python"] == platform.python_version()
    assert found["version/numpy"] == numpy.__version__
    assert found["cores"] == os.cpu_count()
    assert all(found[name] for name in found if name not in ("git_commit", "cpu"))


def test_the_processor_is_named_as_linux_or_python_does(monkeypatch, tmp_path):
    module = importlib.import_module("pquant.tracking.environment")
    monkeypatch.setattr(module, "CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert environment()["cpu"] == "arm"
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: A Chip 9000\n")
    assert environment()["cpu"] == "A Chip 9000"


@pytest.mark.parametrize("error", [FileNotFoundError("git"), subprocess.TimeoutExpired("git", 10), subprocess.CalledProcessError(128, "git")])
def test_the_commit_is_none_where_git_fails(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", fail)
    assert environment()["git_commit"] is None


def test_the_commit_is_that_of_the_working_directory_when_the_package_lies_in_no_repository(monkeypatch, tmp_path):
    def git(*arguments):
        options = ["-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false"]
        return subprocess.run(["git", *options, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "one")
    monkeypatch.chdir(tmp_path)
    commit, real = git("rev-parse", "HEAD"), subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real(command if "." in command else ["false"], **options))
    assert environment()["git_commit"] == commit


def test_config_hash_does_not_depend_on_the_order_of_keys():
    one = {"a": {"x": 1, "y": [1, 2]}, "b": None}
    other = {"b": None, "a": {"y": [1, 2], "x": 1}}
    assert config_hash(one) == config_hash(other)
    assert len(config_hash(one)) == 12 and int(config_hash(one), 16) >= 0


def test_config_hash_is_stable_and_sees_every_value():
    assert config_hash({}) == "44136fa355b3"
    assert (
        len({config_hash(config) for config in ({"a": 1}, {"a": 2}, {"a": [1]}, {"a": "1"}, {"a": {"b": 1}}, {1: "a"}, {"a": [1, 2]}, {"a": [2, 1]})})
        == 8
    )


def test_a_run_that_was_resumed_has_the_hash_of_one_that_was_not() -> None:
    assert len({config_hash({"seed": 0} | resume) for resume in ({}, {"resume": None}, {"resume": "auto"}, {"resume": "outputs/run"})}) == 1
    assert config_hash({"seed": 0, "resume": "auto"}) != config_hash({"seed": 1, "resume": "auto"})

"""Where configurations are found: the user's own folder first, then the package's, then the experiments; other applications are left alone."""

import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType

import pquant.config  # noqa: F401  (registers the search path)
from pquant.installation import CONF, ROOT
from pquant.search_path import ExperimentSource


def providers() -> list[str]:
    return [entry.provider for entry in GlobalHydra.instance().config_loader().get_search_path().get_path()]


def test_experiments_are_a_group_without_a_link() -> None:
    source = ExperimentSource("experiments", f"experiments://{ROOT / 'experiments'}")
    assert not (CONF / "experiment").exists() and source.available()
    assert source.list("", None) == ["experiment"] and source.list("", ObjectType.CONFIG) == [] and source.list("data", ObjectType.CONFIG) == []
    assert "jets_methods" in source.list("experiment", ObjectType.GROUP) and "dst_8bit" in source.list("experiment/jets_methods", ObjectType.CONFIG)
    assert source.is_group("experiment/jets_methods") and not source.is_group("jets_methods") and not source.is_config("jets_methods/dst_8bit")
    assert source.is_config("experiment/jets_methods/dst_8bit") and not source.is_config("experiment")


def test_the_users_folder_lies_on_top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf" / "pruning").mkdir(parents=True)
    (tmp_path / "conf" / "pruning" / "wanda.yaml").write_text("defaults:\n  - /schema/pruning/wanda@_here_\n  - _self_\nsparsity: 0.25\n")
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(config_dir=str(CONF)):
        assert providers() == ["hydra", "user", "main", "experiments", "schema"]
        assert compose("config", overrides=["pruning=wanda"]).pruning.sparsity == 0.25
        assert compose("config", overrides=["experiment=digits_methods/dst"]).pruning.pruning_method == "dst"


def test_a_file_of_the_user_does_not_replace_the_whole_configuration(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "config.yaml").write_text("lr: 1\n")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = partial(subprocess.run, cwd=tmp_path, capture_output=True, text=True, timeout=120, env=environment)
    refused = command([sys.executable, "-m", "pquant", "tracker=none"])
    assert refused.returncode == 1 and "config.yaml would replace the whole configuration of pquant" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    (tmp_path / "conf" / "config.yaml").rename(tmp_path / "conf" / "mine.yaml")
    (tmp_path / "conf" / "mine.yaml").write_text("defaults: [config, _self_]\nseed: 7\n")
    shown = command([sys.executable, "-m", "pquant", "--config-name=mine", "--cfg", "job"])
    assert shown.returncode == 0 and "seed: 7" in shown.stdout and "pruning:" in shown.stdout, shown.stderr


def test_a_copy_of_the_whole_configuration_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(CONF, tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(config_dir=str(CONF)):
        assert compose("config").seed == 0


def test_the_folder_of_the_package_is_not_taken_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    with initialize_config_dir(config_dir=str(CONF)):
        assert providers() == ["hydra", "main", "experiments", "schema"]


def test_other_applications_keep_their_search_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "conf").mkdir()
    monkeypatch.chdir(tmp_path)
    with initialize_config_dir(config_dir=str(tmp_path / "conf")):
        assert providers() == ["hydra", "main", "schema"]

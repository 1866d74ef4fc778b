"""What a study asks Slurm before its first trial, of commands that stand for Slurm's; tests/engines/test_slurm.py asks a cluster."""

import os
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pquant.errors import ConfigError
from pquant.finetuning.slurm import check_slurm


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of a cluster's commands: partitions cpu and gpu, and accounts."""
    for name, lines in {"sinfo": "echo cpu; echo gpu", "sacct": "echo 1"}.items():
        script(tmp_path / name, lines)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def script(file: Path, lines: str) -> None:
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(0o755)


def check(partition: str | None = None, kind: str = "Slurm") -> None:
    check_slurm(OmegaConf.create({"_target_": f"hydra_plugins.hydra_submitit_launcher.submitit_launcher.{kind}Launcher", "partition": partition}))


@pytest.mark.parametrize("partition", [None, "gpu", "cpu,gpu"])
def test_partitions_that_exist_are_taken(partition: str | None, commands: Path, caplog: pytest.LogCaptureFixture) -> None:
    check(partition)
    assert not caplog.messages


@pytest.mark.parametrize("partition", ["gpus", "cpu,gpus"])
def test_a_partition_that_does_not_exist_is_named_with_the_nearest(partition: str, commands: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"hydra.launcher.partition: unknown partition of this cluster 'gpus': did you mean 'gpu'\? valid: cpu, gpu"
    ):
        check(partition)


def test_without_slurm_or_without_its_answer_the_study_does_not_start(commands: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script(commands / "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(ConfigError, match="Slurm does not answer: slurm_load_partitions: Unable to contact"):
        check()
    monkeypatch.setenv("PATH", "")
    check(kind="Local")
    with pytest.raises(ConfigError, match="there is no 'sinfo' on this machine"):
        check()


def test_a_cluster_without_accounts_is_warned_of(commands: Path, caplog: pytest.LogCaptureFixture) -> None:
    script(commands / "sacct", "echo 'Slurm accounting storage is disabled' >&2; exit 1")
    check("gpu")
    assert "has no accounting (Slurm does not answer: Slurm accounting storage is disabled)" in caplog.text

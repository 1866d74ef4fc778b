"""Checks of a Slurm cluster before a study submits its first trial."""

import logging
import subprocess

from omegaconf import DictConfig

from pquant.errors import ConfigError, unknown

log = logging.getLogger(__name__)

SECONDS_TO_ANSWER = 60


def check_slurm(launcher: DictConfig) -> None:
    """Check that Slurm responds and has the partitions of the launcher, and warn if it has no accounting. Other launchers are not checked.

    Raises:
        ConfigError: Slurm is not installed or does not respond, or a partition does not exist.
    """
    if not str(launcher._target_).endswith(".SlurmLauncher"):
        return
    partitions = _answer("sinfo", "--noheader", "--format=%R").split()
    for name in filter(None, (launcher.get("partition") or "").split(",")):
        if name not in partitions:
            raise ConfigError(f"hydra.launcher.partition: {unknown('partition of this cluster', name, partitions)}")
    try:
        _answer("sacct", "--noheader", "--allocations", "--format=JobID")
    except ConfigError as error:
        log.warning("this cluster has no accounting (%s), so a job that Slurm ends is not noticed, and its trial seems to run forever", error)


def _answer(*command: str) -> str:
    """Return what a command of Slurm prints."""
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS_TO_ANSWER).stdout
    except FileNotFoundError as error:
        raise ConfigError(
            f"hydra/launcher=slurm needs Slurm, and there is no '{command[0]}' on this machine: start the study on a login node"
        ) from error
    except (OSError, subprocess.SubprocessError) as error:
        said = str(getattr(error, "stderr", None) or error).split("\n")[0]
        raise ConfigError(f"Slurm does not answer: {said}") from error

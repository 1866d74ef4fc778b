"""Studies on a Slurm cluster of this machine, whose jobs are cancelled, requeued and pre-empted."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from .conftest import ENGINES, MINUTES, Study, rows, wait_for

SLURM = ["hydra/launcher=slurm", "hydra.launcher.partition=low", "hydra.launcher.array_parallelism=2", "hydra.launcher.cpus_per_task=1"]
SCRIPT = ENGINES / "slurm.sh"
REASONS = {
    "needs the extra slurm": find_spec("submitit") is None,
    "needs Slurm: bash tests/engines/slurm.sh install": not all(map(shutil.which, ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd"))),
    "needs root, as munged, slurmctld and slurmd run as root": os.geteuid() != 0,
}
pytestmark = [pytest.mark.skipif(applies, reason=reason) for reason, applies in REASONS.items()]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Return the environment in which commands find the cluster."""
    folder = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(["bash", SCRIPT, "start", folder], capture_output=True, text=True)
    assert started.returncode == 0, started.stderr
    yield {"SLURM_CONF": str(folder / "slurm.conf")}
    subprocess.run(["bash", SCRIPT, "stop", folder], check=True)
    assert not list(folder.glob("slurm*d.pid"))


def slurm(cluster: dict[str, str], *command: str) -> str:
    """Return what a command of Slurm prints."""
    return subprocess.run(command, env=os.environ | cluster, check=True, capture_output=True, text=True, timeout=60).stdout


def jobs(study: Study) -> dict[int, list[str]]:
    """Return the jobs that were submitted for each trial, in order."""
    from submitit.core.utils import DelayedSubmission

    found: dict[int, list[str]] = {}
    for file in sorted(study.folder.glob(".submitit/*/*_submitted.pkl"), key=lambda one: [int(part) for part in one.parent.name.split("_")]):
        (trial,) = [one.partition("=")[2] for one in DelayedSubmission.load(file).args[0] if one.startswith("hydra.sweep.subdir=")]
        found.setdefault(int(trial), []).append(file.parent.name)
    return found


def accounts(cluster: dict[str, str]) -> dict[str, list[tuple[str, str]]]:
    """Return state and exit code of each run of each job, as ``sacct`` has them."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in slurm(cluster, "sacct", "-a", "-n", "-P", "-X", "--duplicates", "--format=JobID,State,ExitCode").splitlines():
        job, state, code = line.split("|")
        found.setdefault(job, []).append((state.split()[0], code))
    return found


def log(study: Study, job: str) -> str:
    return "".join(file.read_text() for file in sorted((study.folder / ".submitit" / job).glob("*_log.*")))


def test_a_study_of_eight_goes_on_after_jobs_are_cancelled_requeued_and_told_of_a_pre_emption(cluster: dict[str, str], tmp_path: Path) -> None:
    study, quiet = Study(tmp_path / "study", 60, cluster), Study(tmp_path / "quiet", 60)
    with study.started(*SLURM, "finetuning.num_trials=8") as process:
        for trial, command in ((0, ["scancel"]), (2, ["scontrol", "requeue"]), (3, ["scancel", "--signal=USR1"])):
            study.wait_for_epoch(trial, 10)
            slurm(cluster, *command, jobs(study)[trial][-1])
        assert process.wait(timeout=10 * MINUTES) == 0, study.said
    study.check_complete(8)
    assert "trial 0 was lost and runs again, from its last checkpoint: job" in study.said and "in state CANCELLED" in study.said
    submitted = jobs(study)
    assert {trial: len(names) for trial, names in submitted.items()} == {0: 2} | dict.fromkeys(range(1, 8), 1)
    for trial in (0, 2, 3):
        assert "resuming after epoch" in log(study, submitted[trial][-1]), f"trial {trial} began anew"
    wait_for(lambda: accounts(cluster)[submitted[7][-1]][-1][0] == "COMPLETED", "the accounts")
    states = {trial: [run for job in names for run in accounts(cluster)[job]] for trial, names in submitted.items()}
    assert states[0] == [("CANCELLED", "0:0"), ("COMPLETED", "0:0")]
    assert states[2] == states[3] == [("REQUEUED", "0:0"), ("COMPLETED", "0:0")]
    assert all(states[trial] == [("COMPLETED", "0:0")] for trial in (1, 4, 5, 6, 7))
    quiet.run("finetuning.num_trials=8")
    assert [row["val/accuracy"] for row in rows(study.folder / "trials.csv")] == [row["val/accuracy"] for row in rows(quiet.folder / "trials.csv")]
    assert all(
        (study.folder / str(trial) / "model.safetensors").read_bytes() == (quiet.folder / str(trial) / "model.safetensors").read_bytes()
        for trial in range(8)
    )


def test_jobs_of_a_partition_that_takes_precedence_pre_empt_trials_which_go_on(cluster: dict[str, str], tmp_path: Path) -> None:
    study = Study(tmp_path / "study", 100, cluster)
    with study.started(*SLURM, "finetuning.num_trials=2") as process:
        study.wait_for_epoch(0, 10)
        study.wait_for_epoch(1, 10)
        slurm(cluster, "sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=sleep 5")
        assert process.wait(timeout=8 * MINUTES) == 0, study.said
    study.check_complete(2)
    for (job,) in jobs(study).values():
        assert "resuming after epoch" in log(study, job)
        wait_for(lambda job=job: accounts(cluster)[job][-1] == ("COMPLETED", "0:0"), "the accounts")  # type: ignore[misc]
        assert accounts(cluster)[job][0][0] in ("PREEMPTED", "REQUEUED")


@pytest.mark.parametrize("partition", ["lwo", "low,nosuch"])
def test_a_partition_that_does_not_exist_is_one_line(partition: str, cluster: dict[str, str], tmp_path: Path) -> None:
    study = Study(tmp_path / "study", 2, cluster)
    study.run(*SLURM, f"hydra.launcher.partition='{partition}'", "finetuning.num_trials=8", status=1, seconds=MINUTES)
    name = partition.rpartition(",")[2]
    assert study.said.startswith(f"error: hydra.launcher.partition: unknown partition of this cluster '{name}'") and study.said.count("\n") == 1
    assert "valid: low, high" in study.said and not jobs(study) and not rows(study.folder / "trials.csv")

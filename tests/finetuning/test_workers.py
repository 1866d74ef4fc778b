"""What each worker gets: threads, a GPU."""

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from pquant.finetuning import launchers
from pquant.finetuning.gpu import own_gpu
from pquant.finetuning.launchers import threads_per_job, trials_at_once

from .conftest import ROOT

BASIC = {"_target_": "hydra._internal.core_plugins.basic_launcher.BasicLauncher"}
JOBLIB = {"_target_": "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher", "n_jobs": -1}
LOCAL = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher", "cpus_per_task": None}
SLURM = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher", "cpus_per_task": 4, "array_parallelism": 16}


@pytest.mark.parametrize(
    ("launcher", "jobs", "threads"),
    [(BASIC, 1, 0), (JOBLIB, 8, 1), (JOBLIB | {"n_jobs": 2}, 2, 4), (JOBLIB | {"n_jobs": -5}, 4, 2)]
    + [(JOBLIB | {"inner_max_num_threads": 3}, 8, 3), (LOCAL, 8, 1), (SLURM, 16, 4)],
)
def test_jobs_and_threads_share_the_cores(launcher: dict[str, object], jobs: int, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launchers, "_cores", lambda: 8)
    node = OmegaConf.create(launcher)
    assert trials_at_once(node, None) == jobs
    assert threads_per_job(node, jobs) == threads


def test_slurm_is_a_launcher() -> None:
    pytest.importorskip("submitit")
    with initialize_config_dir(config_dir=str(ROOT / "conf")):
        launcher = compose("config", overrides=["hydra/launcher=slurm"], return_hydra_config=True).hydra.launcher
    assert launcher._target_ == SLURM["_target_"] and launcher.array_parallelism == 16


def test_workers_take_different_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    (tmp_path / "locks").mkdir()
    with own_gpu(tmp_path), own_gpu(tmp_path), own_gpu(tmp_path):
        assert taken == [0, 1]
    with own_gpu(tmp_path):
        assert taken == [0, 1, 0]


def test_one_gpu_needs_no_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: pytest.fail("nothing to choose"))
    with own_gpu(tmp_path):
        pass
    assert not (tmp_path / "locks").exists()

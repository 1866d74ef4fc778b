"""Fields of the Joblib launcher that a study does not use are refused."""

import pytest
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from omegaconf import DictConfig, OmegaConf

from pquant.errors import ConfigError
from pquant.finetuning.joblib_fields import check_joblib

from .conftest import FakeJobs, Study
from .test_workers import BASIC, SLURM


def joblib(**fields: object) -> DictConfig:
    return OmegaConf.merge(OmegaConf.structured(JobLibLauncherConf), fields)  # type: ignore[return-value]


@pytest.mark.parametrize("fields", [{}, {"n_jobs": 3}, {"inner_max_num_threads": 2}, {"backend": None}, {"backend": "loky"}])
def test_fields_that_have_an_effect_are_taken(fields: dict[str, object]) -> None:
    check_joblib(joblib(**fields), threads=0)


@pytest.mark.parametrize("launcher", [BASIC, SLURM | {"timeout": 3}])
def test_other_launchers_have_fields_of_their_own(launcher: dict[str, object]) -> None:
    check_joblib(OmegaConf.create(launcher), threads=2)


@pytest.mark.parametrize(
    ("field", "value"),
    [("backend", "multiprocessing"), ("prefer", "threads"), ("require", "sharedmem"), ("verbose", 10), ("timeout", 60.0)]
    + [("pre_dispatch", "all"), ("batch_size", "1"), ("temp_folder", "/tmp"), ("max_nbytes", "1M"), ("mmap_mode", "c")],
)
def test_a_field_without_effect_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"hydra\.launcher\.{field} = {value} has no effect in a study.*: leave it out"):
        check_joblib(joblib(**{field: value}), threads=0)


def test_threads_are_given_once() -> None:
    with pytest.raises(ConfigError, match="inner_max_num_threads = 2 has no effect beside training.threads = 1: leave one out"):
        check_joblib(joblib(inner_max_num_threads=2), threads=1)


def test_a_study_refuses_such_a_field_before_its_first_trial(study: Study, jobs: FakeJobs) -> None:
    with pytest.raises(SystemExit) as caught:
        study.start("finetuning=random", "finetuning.num_trials=2", "hydra/launcher=joblib", "hydra.launcher.timeout=60")
    assert "hydra.launcher.timeout = 60.0 has no effect in a study; finetuning.trial_timeout limits" in str(caught.value)
    assert not jobs.runs and not study.folder.exists()

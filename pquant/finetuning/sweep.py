"""The loop of a study: claim a trial for each free place, start it, and write the results when one ends, until ``num_trials`` trials have ended."""

import logging
import math
import os
import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from functools import partial
from pathlib import Path
from typing import Any

import optuna
from hydra.core.utils import JobStatus
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper._impl import OptunaSweeperImpl, create_params_from_overrides
from omegaconf import DictConfig, OmegaConf, open_dict
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import Trial, TrialState

from pquant.config import build_experiment
from pquant.errors import ConfigError
from pquant.finetuning.expressions import literal
from pquant.finetuning.finetuning import FineTuning
from pquant.finetuning.joblib_fields import check_joblib
from pquant.finetuning.launch_errors import is_lost, launch_error
from pquant.finetuning.launchers import JobFuture, starter, threads_per_job, trials_at_once
from pquant.finetuning.results import COMMAND, ResultFiles, log_results
from pquant.finetuning.slurm import check_slurm
from pquant.finetuning.study import check_state, check_trial, drawn, is_grid, open_study, retried, retry_failed, sampler, storage
from pquant.finetuning.trial_locks import FAILURE, Claims, error_line, study_lock
from pquant.installation import program
from pquant.tracking.files import check_links

log = logging.getLogger(__name__)

Space = dict[str, BaseDistribution]
RAY = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
"""Makes Ray's workers use this environment under ``uv run`` too, instead of creating one without Ray."""
SECONDS_BETWEEN_LOOKS = 0.5
"""Interval in seconds at which the study checks whether the process of a lost job has ended."""
MAY_DIFFER = ("hydra", "finetuning", "tracker", "progress", "resume", "dry_run")
"""Sections that may differ between the processes of one study."""


class StudySweep(OptunaSweeperImpl):
    """Hydra's Optuna sweep with a study in a storage. It takes Hydra's arguments, objectives, constraints and a pruner.

    Raises:
        ConfigError: no trial can be drawn from the search space, the study has other settings, or too many trials failed.
    """

    def __init__(self, objectives: Sequence[str], constraints: Mapping[str, float], pruner: DictConfig | None, **optuna_sweeper: Any) -> None:
        limits = {"max_failure_rate": optuna_sweeper["max_failure_rate"], "trial_timeout": optuna_sweeper.pop("trial_timeout")}
        FineTuning(num_trials=optuna_sweeper["n_trials"], **limits)
        self.pruner = pruner
        super().__init__(**optuna_sweeper)
        self.objectives, self.constraints = list(objectives), dict(constraints)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Store Hydra's arguments, and determine how many trials run in parallel."""
        os.environ.update(RAY | os.environ)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self.master, self.compose = config, partial(hydra_context.config_loader.load_sweep_config, config)
        self.n_jobs = trials_at_once(config.hydra.launcher, self.n_jobs)
        self.threads = 0 if config.training.threads else threads_per_job(config.hydra.launcher, self.n_jobs)

    def sweep(self, arguments: list[str]) -> None:
        """Run the trials that the study still needs."""
        space, fixed = self._space(arguments)
        grid = self._grid(space) if is_grid(self.sampler) else None
        total = min(self.n_trials, math.prod(map(len, grid.values()))) if grid is not None else self.n_trials
        self._check(space, fixed)
        check_joblib(self.master.hydra.launcher, self.master.training.threads)
        check_slurm(self.master.hydra.launcher)
        check_trial(self.sampler, grid, space, self.pruner)
        folder = Path(self.sweep_dir).absolute()
        check_links(folder)
        with study_lock(folder):
            store = storage(self.storage, folder)
            study = open_study(self.study_name or "", store, self._get_directions(), self._settings(space))
            check_state(study)
            if grid is not None:
                retry_failed(study)
                total += len(retried(study))
        claims = Claims(study, store, folder)
        log.info("study %s in %s: %d of %d trials left", self.study_name, folder, max(0, total - len(_ended(study))), total)
        files = ResultFiles(study, folder, self.objectives)
        running: dict[JobFuture, int] = {}
        assert self.launcher is not None
        with claims.alive(), files, starter(self.launcher, self.n_jobs) as jobs:
            while True:
                dying = claims.settle_dying()
                failing = self._failing(study, folder)
                free = 0 if failing else self.n_jobs - len(running)
                trials = claims.claim(free, total, partial(sampler, self.sampler, grid), space) if free else []
                if trials:
                    running |= jobs.start(self._jobs({trial: drawn(trial, space) for trial in trials}, fixed))
                if not running and not dying:
                    break
                for ended in _ended_jobs(running, SECONDS_BETWEEN_LOOKS if dying else None):
                    claims.settle(running.pop(ended), *_end(ended))
                files.update()
            if failing:
                raise ConfigError(failing)
        log_results(study, folder, self.objectives)

    def _space(self, arguments: list[str]) -> tuple[Space, list[str]]:
        """Return the fields to search, and the overrides that all trials share; a field with a fixed value is not searched."""
        self._process_searchspace_config()
        space, fixed, deleted = create_params_from_overrides(self._parse_sweeper_params_config() + arguments)
        return {name: one for name, one in space.items() if name not in fixed}, [f"{name}={value}" for name, value in fixed.items()] + deleted

    def _grid(self, space: Space) -> dict[str, Sequence[Any]]:
        try:
            return {name: self._to_grid_sampler_choices(one) for name, one in space.items()}
        except ValueError as error:
            raise ConfigError(f"a grid needs ranges with a step, or choices: {error}") from error

    def _check(self, space: Space, fixed: list[str]) -> None:
        """Compose and build a job at both ends of every range and for each choice, so that an invalid value is an error before the first trial."""
        if not space:
            raise ConfigError("there is nothing to search: name fields in finetuning.hyperparameter_search")
        if self.master.dry_run:
            raise ConfigError("dry_run shows one job, not a study: leave out -m finetuning=...")
        if not self.n_trials:
            raise ConfigError("FineTuning.num_trials must be in [1, inf) for a study, got 0")
        for params in _corners(space):
            job = self.compose([*_overrides(params), *fixed])
            with open_dict(job):
                del job["hydra"]
            build_experiment(job)

    def _settings(self, space: Space) -> dict[str, Any]:
        """Return the settings that must be the same for all trials of a study."""
        job = OmegaConf.to_container(self.master)
        assert isinstance(job, dict)
        search = {name: repr(one) for name, one in space.items()}
        optimized = {"objectives": self.objectives, "directions": self._get_directions(), "constraints": self.constraints}
        return {str(name): section for name, section in job.items() if name not in MAY_DIFFER and name not in search} | {"search": search} | optimized

    def _failing(self, study: optuna.Study, folder: Path) -> str | None:
        """Return why the study stops, if too many trials have failed; running trials end first."""
        failed = study.get_trials(deepcopy=False, states=(TrialState.FAIL,))
        again = retried(study) if failed else set()
        failed = [trial for trial in failed if trial.number not in again]
        if len(failed) <= self.max_failure_rate * self.n_trials:
            return None
        return (
            f"{len(failed)} of {self.n_trials} trials failed, more than finetuning.max_failure_rate = {self.max_failure_rate:g} allows; "
            f"the last, in {folder / str(failed[-1].number)}: {failed[-1].user_attrs.get(FAILURE)}"
        )

    def _jobs(self, given: Mapping[Trial, Mapping[str, Any]], fixed: list[str]) -> dict[int, list[str]]:
        """Return the overrides of each trial's job by its number, and record the command that repeats it."""
        shared = [*fixed, *self._tracking(), *([f"training.threads={self.threads}"] if self.threads else [])]
        jobs = {}
        for trial, params in given.items():
            trial.set_user_attr(COMMAND, _command(_overrides(params), fixed))
            jobs[trial.number] = [*_overrides(params), *shared, *self._tracking(trial.number), f"hydra.sweep.subdir={trial.number}"]
            log.info("trial %d: %s", trial.number, " ".join(_overrides(params)))
        return jobs

    def _tracking(self, number: int | None = None) -> list[str]:
        """Return the override of the tracker's group (the study), or of its run name (the trial ``number``), if it has such a field."""
        field, value = ("group", self.study_name) if number is None else ("name", f"{self.study_name}-{number}")
        tracker = self.master.tracker
        return [f"tracker.{field}={literal(value)}"] if field in tracker and tracker[field] is None else []


def _ended_jobs(running: Collection[JobFuture], seconds: float | None) -> set[JobFuture]:
    """Wait until a job ends, at most ``seconds``; return the jobs that have ended."""
    if not running:
        time.sleep(seconds or 0)
    return wait(running, timeout=seconds, return_when=FIRST_COMPLETED).done


def _ended(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def _corners(space: Space) -> Iterator[dict[str, Any]]:
    ends = {name: one.choices if isinstance(one, CategoricalDistribution) else (one.low, one.high) for name, one in space.items()}  # type: ignore[attr-defined]
    first = {name: values[0] for name, values in ends.items()}
    yield first
    yield from (first | {name: value} for name, values in ends.items() for value in values[1:])


def _overrides(params: Mapping[str, Any]) -> list[str]:
    """Return parameters as overrides; Hydra's sweeper gives choices as strings in its own grammar already."""
    return [f"{name}={value if isinstance(value, str) else literal(value)}" for name, value in params.items()]


def _command(params: list[str], fixed: list[str]) -> str:
    """Return the command that repeats a trial as a single run."""
    kept = [one for one in fixed if not one.lstrip("+~").startswith(("finetuning=", "finetuning."))]
    return shlex.join([*program(), *kept, *params])


def _end(ended: JobFuture) -> tuple[str, bool]:
    """Return why a job ended without reporting its end to the study, and whether it was lost without an error of its own."""
    if (error := ended.exception()) is not None:
        return launch_error(error), is_lost(error)
    failed = ended.result().status is JobStatus.FAILED
    return error_line(ended.result()._return_value) if failed else "the job did not report its end", False

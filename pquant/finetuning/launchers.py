"""Starts the trials of a study one by one on Hydra's launchers, so that the next trial starts as soon as one ends.

A launcher of Hydra takes a batch of jobs and returns when all have ended. It must not be called from several threads, since it copies Hydra's global
state. Therefore this module starts each job from the study's process, with the functions that the launchers use, and returns a future for it.
"""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf, open_dict

from pquant.finetuning.orphans import end_with
from pquant.finetuning.timeout import TrialTimeoutError

log = logging.getLogger(__name__)

Jobs = Mapping[int, Sequence[str]]
"""The overrides of each job, by the trial's number."""
JobFuture = Future[JobReturn]


class Starter(Protocol):
    """Starts jobs."""

    def start(self, jobs: Jobs) -> dict[JobFuture, int]:
        """Start at most as many jobs as there are free places; return the number of each job by its future. A job that cannot start fails."""
        ...

    def stop(self) -> None:
        """End the jobs that still run on this machine."""
        ...


class Batches:
    """Starts batches of jobs on any other launcher: all jobs of a batch end before the next batch starts. The basic launcher gets one job at a time.

    Args:
        launcher: a launcher, after its ``setup``.
    """

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher

    def start(self, jobs: Jobs) -> dict[JobFuture, int]:
        """Run jobs to their end."""
        ended = _called(lambda: self.launcher.launch(list(jobs.values()), initial_job_idx=min(jobs)))
        return {_called(lambda index=index: ended.result()[index]): number for index, number in enumerate(jobs)}  # type: ignore[misc]

    def stop(self) -> None:
        """Do nothing: no job runs between two calls of ``start``."""


class Processes:
    """Starts jobs as Joblib does, with one worker process per place, so that a worker that dies does not end other trials.

    Args:
        launcher: Hydra's Joblib launcher, after its ``setup``.
        places: number of jobs in parallel.
    """

    def __init__(self, launcher: Any, places: int) -> None:
        self.launcher = launcher
        self.places: list[tuple[Any, JobFuture | None]] = [(None, None)] * places

    def start(self, jobs: Jobs) -> dict[JobFuture, int]:
        """Start each job in the worker of a free place."""
        return {self._start(number, overrides): number for number, overrides in jobs.items()}

    def stop(self) -> None:
        """End the workers."""
        for worker, _ in self.places:
            if worker is not None:
                worker.shutdown(kill_workers=True)

    def _start(self, number: int, overrides: Sequence[str]) -> JobFuture:
        from hydra_plugins.hydra_joblib_launcher._core import execute_job
        from joblib.externals.loky.process_executor import ProcessPoolExecutor

        place = next(place for place, (_, last) in enumerate(self.places) if last is None or last.done())
        worker, last = self.places[place]
        if worker is None or (last is not None and _unusable(last)):
            if worker is not None:
                worker.shutdown(kill_workers=True)
            worker = ProcessPoolExecutor(max_workers=1, initializer=end_with, initargs=(os.getpid(),))
        one = self.launcher
        future = worker.submit(execute_job, number, overrides, one.hydra_context, one.config, one.task_function, 0, Singleton.get_state(), False)
        self.places[place] = worker, future
        return future


class Submitted:
    """Base class for launchers that submit each job to other processes (Ray, a cluster).

    Args:
        launcher: Hydra's launcher, after its ``setup``.
    """

    def __init__(self, launcher: Any) -> None:
        self.launcher = launcher

    def start(self, jobs: Jobs) -> dict[JobFuture, int]:
        """Submit each job."""
        return {_waited_for(_called(partial(self._start, number, overrides))): number for number, overrides in jobs.items()}

    def stop(self) -> None:
        """Do nothing. Ray ends its tasks with the study's process; jobs of a cluster continue, and the study reads their results when it resumes."""

    def _start(self, number: int, overrides: Sequence[str]) -> Callable[[], Any]:
        """Submit a job; return a function that waits for its result."""
        raise NotImplementedError


class Tasks(Submitted):
    """Ray: one task per job. Ray runs the task of a node that dies on another one, and ends all tasks with the study's process."""

    def _start(self, number: int, overrides: Sequence[str]) -> Callable[[], Any]:
        import ray
        from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray, start_ray

        one = self.launcher
        start_ray(DictConfig(OmegaConf.to_container(one.ray_cfg.init, resolve=True)))
        job = one.hydra_context.config_loader.load_sweep_config(one.config, list(overrides))
        with open_dict(job):
            job.hydra.job.id, job.hydra.job.num = f"job_id_for_{number}", number
        task = launch_job_on_ray(one.hydra_context, one.ray_cfg.remote, job, one.task_function, Singleton.get_state())
        return partial(ray.get, task)


class ClusterJobs(Submitted):
    """Submitit: one job of the cluster, or of this machine, per trial. Those of a cluster survive the study's process."""

    def _start(self, number: int, overrides: Sequence[str]) -> Callable[[], Any]:
        import submitit
        from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

        kind, params = self.launcher._EXECUTOR, dict(self.launcher.params)
        folder = params.pop("submitit_folder")
        own = {f"{kind}_{name}": params.pop(name) for name in ("max_num_timeout", "python") if name in params}
        executor = submitit.AutoExecutor(folder=folder, cluster=kind, **own)
        shared = set(OmegaConf.structured(BaseQueueConf).keys())
        executor.update_parameters(**{name if name in shared else f"{kind}_{name}": value for name, value in params.items()})
        job = executor.submit(self.launcher, list(overrides), "hydra.sweep.dir", number, f"job_id_for_{number}", Singleton.get_state())
        return job.result


@contextmanager
def starter(launcher: Launcher, places: int) -> Iterator[Starter]:
    """Yield the starter for up to ``places`` parallel jobs of a launcher; an error in the block ends the jobs on this machine."""
    name = type(launcher).__name__
    if name == "JoblibLauncher":
        chosen: Starter = Processes(launcher, places)
    elif name == "RayLauncher":
        chosen = Tasks(launcher)
    elif name in ("LocalLauncher", "SlurmLauncher"):
        chosen = ClusterJobs(launcher)
    else:
        chosen = Batches(launcher)
    try:
        yield chosen
    finally:
        chosen.stop()


def trials_at_once(launcher: DictConfig, asked: int | None) -> int:
    """Return how many trials run in parallel: as many as ``asked``, limited to what the launcher can run.

    The basic launcher runs one, others their ``n_jobs`` or ``array_parallelism``, or one per core of this machine.
    """
    own = 1 if str(launcher._target_).endswith(".BasicLauncher") else launcher.get("n_jobs") or launcher.get("array_parallelism")
    at_once = _of_cores(own or -1)
    if asked is None:
        return at_once
    if own and asked > at_once:
        log.warning(
            "hydra.sweeper.n_jobs=%d, but this launcher runs %s at a time; %s",
            asked,
            "one trial" if at_once == 1 else f"{at_once} trials",
            "hydra/launcher=joblib runs them in parallel"
            if own == 1 and "n_jobs" not in launcher
            else "see its fields: --cfg hydra -p hydra.launcher",
        )
        return at_once
    return asked


def threads_per_job(launcher: DictConfig, jobs: int) -> int:
    """Return the CPU threads of each job: an equal share of this machine's cores, or the number that the launcher sets; 0: torch's default."""
    if given := launcher.get("cpus_per_task") or launcher.get("inner_max_num_threads"):
        return int(given)
    here = "n_jobs" in launcher or str(launcher._target_).endswith(".LocalLauncher")
    return max(1, _cores() // jobs) if here and jobs > 1 else 0


def _unusable(last: JobFuture) -> bool:
    """Return whether a worker died or was interrupted in its last job, so that it cannot run another."""
    if last.exception():
        return isinstance(last.exception(), BrokenExecutor)
    return isinstance(last.result()._return_value, TrialTimeoutError)


def _of_cores(number: int) -> int:
    """Return a number of jobs. A negative number counts down from all cores, as in joblib: -1 is all cores."""
    return number if number > 0 else max(1, _cores() + 1 + number)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _called(function: Callable[[], Any]) -> Future[Any]:
    """Call the function, and return a future with its result or error."""
    future: Future[Any] = Future()
    try:
        future.set_result(function())
    except Exception as error:
        future.set_exception(error)
    return future


def _waited_for(started: Future[Callable[[], Any]]) -> JobFuture:
    """Return the future of a job; a daemon thread waits for the end of the job."""
    if started.exception():
        return _called(started.result)
    future: JobFuture = Future()

    def wait() -> None:
        try:
            future.set_result(started.result()())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=wait, daemon=True).start()
    return future

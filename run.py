"""Compose one job from conf/ and run it: ``python run.py pruning=wanda quantization.use_hgq=true``."""

import gc
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # while importing: end at once, without a traceback
if __name__ == "__main__":
    gc.disable()  # while importing: imports create many objects and no garbage
if __name__ == "__main__" and "hydra/launcher=joblib" in sys.argv and "forkserver" in multiprocessing.get_all_start_methods():
    # joblib forks its workers from a server process that imports the same modules, in parallel with this process.
    from multiprocessing import forkserver

    from joblib.externals.loky.backend.context import set_start_method

    forkserver.set_forkserver_preload(["__main__", "pquant.finetuning.workers"])
    forkserver.ensure_running()
    set_start_method("forkserver")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from pquant.config import CLEAR_ERRORS, build_experiment, check_overrides, explain
from pquant.config_help import explaining
from pquant.finetuning.current_job import current_job
from pquant.finetuning.job import Row
from pquant.finetuning.sweeper import StudySweeper
from pquant.resume import composed_run
from pquant.signals import Interrupted, end, submitit_job
from pquant.targets import allowed_packages

BEGUN: list[bool] = []
"""Whether a job has begun in this process."""


@hydra.main(config_path="conf", config_name="config", execution_whitelist=[f"{package}.*" for package in allowed_packages()])
def job(config: DictConfig) -> float | list[float] | None:
    """Run one job and return the values that a sweep optimizes; a single run with an invalid configuration ends here."""
    BEGUN.append(True)
    try:
        with submitit_job():
            return current_job(config).conduct(partial(run, config))
    except CLEAR_ERRORS as error:
        if HydraConfig.get().mode is RunMode.RUN:
            refuse(error)
        raise


def run(config: DictConfig, callback: Callable[[Row], None], resume: bool) -> dict[str, Any]:
    """Run the experiment that ``config`` describes; return the metrics of its summary."""
    origin, composed = composed_run(config, resume)
    return build_experiment(composed).run(origin, callback)


def refuse(error: BaseException) -> None:
    """End the process with one line that explains the error; return if $PQUANT_TRACEBACK asks for a traceback."""
    if not os.environ.get("PQUANT_TRACEBACK"):
        sys.exit(f"error: {explain(error)}")


def main() -> None:
    """Run; exit with one line for an error that the user can fix, and with 128 + the signal's number if a signal ended the run."""
    gc.freeze()
    gc.enable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    Plugins.instance().register(StudySweeper)
    try:
        check_overrides(sys.argv[1:])
        with explaining(sys.argv):
            job()
    except CLEAR_ERRORS as error:
        refuse(error)
        raise
    except Exception as error:  # of Hydra or a library that Hydra asks, as long as no job has begun
        if not BEGUN:
            refuse(error)
        raise
    except Interrupted as interrupt:
        end(interrupt)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


if __name__ == "__main__":
    main()

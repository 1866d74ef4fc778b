"""Compose one job from the configuration and run it, as ``python run.py``, ``pquant`` and ``python -m pquant`` do."""

import gc
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import RunMode
from omegaconf import DictConfig

from pquant import layer_rules, predict
from pquant.config import CLEAR_ERRORS, build_experiment, check_complete, check_overrides, explain
from pquant.config_help import explaining
from pquant.finetuning.current_job import current_job
from pquant.finetuning.job import Row
from pquant.finetuning.sweeper import StudySweeper
from pquant.own_classes import with_model_preset, with_new_fields, without_foreign_fields
from pquant.resume import check_from_run, composed_run
from pquant.search_path import PRIMARY
from pquant.signals import Interrupted, end, submitit_job
from pquant.targets import allowed_packages

BEGUN: list[bool] = []
"""Whether a job has begun in this process."""


@hydra.main(config_path=PRIMARY, config_name="config", execution_whitelist=[f"{package}.*" for package in allowed_packages()])
def job(config: DictConfig) -> float | list[float] | None:
    """Run one job and return the values that a sweep optimizes; a single run with an invalid configuration ends the process here."""
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
    check_complete(config)
    origin, composed = composed_run(without_foreign_fields(config, HydraConfig.get().overrides.task), resume)
    return build_experiment(composed).run(origin, callback)


def refuse(error: BaseException) -> None:
    """End the process with one line that explains the error; return if $PQUANT_TRACEBACK asks for a traceback."""
    if not os.environ.get("PQUANT_TRACEBACK"):
        sys.exit(f"error: {explain(error)}")


def main() -> None:
    """Run the command. Exit with one line for an error that the user can fix, and with 128 + signal number if a signal ended the run."""
    gc.freeze()
    gc.enable()
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    Plugins.instance().register(StudySweeper)
    try:
        if sys.argv[1:2] == ["predict"]:
            predict.main(sys.argv[2:])
            return
        prints_layers = sys.argv[1:2] == ["layers"]
        words = sys.argv[1 + prints_layers :]
        check_overrides(words)
        check_from_run(words)
        words = with_new_fields(with_model_preset(words))
        if prints_layers:
            layer_rules.main(words)
            return
        sys.argv[1:] = words
        with explaining(sys.argv):
            job()
    except CLEAR_ERRORS as error:
        refuse(error)
        raise
    except Exception as error:  # an error of Hydra or of a library that it calls, if no job has begun
        if not BEGUN:
            refuse(error)
        raise
    except Interrupted as interrupt:
        end(interrupt)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)

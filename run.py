"""Compose one job from conf/ and run it: ``python run.py pruning=wanda quantization.use_hgq=true``."""

import os
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from pquant.config import CONFIGURATION_ERRORS, allowed_targets, build_experiment, explain, run_folder
from pquant.experiment import Run
from pquant.finetuning.job import Row, this_job


@hydra.main(config_path="conf", config_name="config", execution_whitelist=allowed_targets())
def job(config: DictConfig) -> float | list[float] | None:
    """Run one job and return what a sweep optimizes."""
    return this_job(config).conduct(partial(run, config))


def run(config: DictConfig, watch: Callable[[Row], None], go_on: bool) -> dict[str, Any]:
    """Run the experiment that ``config`` describes; return the figures of its summary."""
    folder, composed = run_folder(config)
    experiment = build_experiment(composed)
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    return experiment.run(Run(folder, plain, " ".join(["python", *sys.argv]), go_on or config.resume is not None), watch)


def main() -> None:
    """Run; say configuration errors in one line, or with a traceback when $PQUANT_TRACEBACK is set."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        job()
    except CONFIGURATION_ERRORS as error:
        if os.environ.get("PQUANT_TRACEBACK"):
            raise
        sys.exit(f"error: {explain(error)}")


if __name__ == "__main__":
    main()

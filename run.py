"""Compose one job from conf/ and run it: ``python run.py pruning=wanda quantization.use_hgq=true``."""

import os
import sys

import hydra
from omegaconf import DictConfig, OmegaConf

from pquant.config import CONFIGURATION_ERRORS, allowed_targets, build_experiment, explain, run_folder
from pquant.experiment import Run


@hydra.main(config_path="conf", config_name="config", execution_whitelist=allowed_targets())
def job(config: DictConfig) -> float | None:
    """Run one job and return the figure that a sweep optimizes."""
    resume = config.resume is not None
    folder, config = run_folder(config)
    experiment = build_experiment(config)
    plain = OmegaConf.to_container(config, resolve=True)
    return experiment.objective(experiment.run(Run(folder, plain, " ".join(["python", *sys.argv]), resume)))


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

"""Compose one job from conf/ and run it: ``python run.py pruning=wanda quantization.use_hgq=true``."""

import os
import sys
from pathlib import Path

import hydra
from omegaconf import DictConfig, OmegaConf

from pquant.config import CONFIGURATION_ERRORS, allowed_targets, build_experiment, explain, output_folder
from pquant.experiment import Run


@hydra.main(config_path="conf", config_name="config", execution_whitelist=allowed_targets())
def job(config: DictConfig) -> float | None:
    """Run one job and return the figure that a sweep optimizes."""
    folder = Path(config.resume) if config.resume else output_folder()
    if config.resume:
        config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    run = Run(folder, OmegaConf.to_container(config, resolve=True), " ".join(["python", *sys.argv]), resume=bool(config.resume))
    experiment = build_experiment(config)
    return experiment.objective(experiment.run(run))


def main() -> None:
    """Run, and say configuration errors in one line unless $HYDRA_FULL_ERROR asks for more."""
    full = os.environ.setdefault("HYDRA_FULL_ERROR", "1") != "1" or "PQUANT_TRACEBACK" in os.environ
    try:
        job()
    except CONFIGURATION_ERRORS as error:
        if full:
            raise
        sys.exit(f"error: {explain(error)}")


if __name__ == "__main__":
    main()

"""Trials that sleep instead of training, for benchmarks of a study, on any launcher: a callback of Hydra.

    export PYTHONPATH=benchmarks PQUANT_ALLOW=dummy_trials LENGTHS=1,1,1,10
    python run.py -m finetuning=random +hydra.callbacks.dummy._target_=dummy_trials.Dummy

Trial n takes the length n, modulo their number, of $LENGTHS, in seconds.
"""

import os
import time
from collections.abc import Callable
from typing import Any

from hydra.experimental.callback import Callback

from pquant.experiment import Experiment, Run


class Dummy(Callback):
    """Let every job of this process sleep."""

    def on_job_start(self, **kwargs: Any) -> None:
        """Replace what a run does."""
        Experiment.run = sleep  # type: ignore[method-assign, assignment]


def sleep(experiment: Experiment, run: Run, callback: Callable[[dict[str, Any]], None]) -> dict[str, float]:
    """Sleep; return the metrics of a trial."""
    lengths = [float(length) for length in os.environ["LENGTHS"].split(",")]
    time.sleep(lengths[int(run.folder.name) % len(lengths)])
    rate, bits = run.config["optimizer"]["lr"], run.config["quantization"]["default_weight_fractional_bits"]
    return {"val/accuracy": 1 - abs(rate - 4e-3) * 50, "ebops": 1000.0 * bits, "sparsity": rate}

"""Callbacks of Hydra that replace what jobs do, on any launcher: jobs end at once and the process of trial $DYING dies, or jobs last long."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from pquant.experiment import Experiment, Run


class Dying(Callback):
    """Replaces what a run does in the process of every job."""

    def on_job_start(self, **kwargs: Any) -> None:
        Experiment.run = end  # type: ignore[method-assign, assignment]


def end(experiment: Experiment, run: Run, callback: Any) -> dict[str, float]:
    if run.folder.name == os.environ["DYING"]:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(5)
    return {"val/accuracy": run.config["optimizer"]["lr"]}


class Lasting(Callback):
    """Lets jobs last $SECONDS, and note their processes in the folder $NOTES."""

    def on_job_start(self, **kwargs: Any) -> None:
        Experiment.run = last  # type: ignore[method-assign, assignment]


def last(experiment: Experiment, run: Run, callback: Any) -> dict[str, float]:
    Path(os.environ["NOTES"], f"{run.folder.name}-{os.getpid()}").touch()
    time.sleep(float(os.environ["SECONDS"]))
    return {"val/accuracy": run.config["optimizer"]["lr"]}

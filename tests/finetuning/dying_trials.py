"""A callback of Hydra that lets jobs end at once, and the process of trial $DYING die, on any launcher."""

import os
import signal
import time
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

"""``run.py`` with jobs that take a tenth of a second and note in $NOTES who ran them; in trial $KILL the process dies."""

import os
import runpy
import time
from pathlib import Path

from pquant.experiment import Experiment


def fake(experiment, run, callback):
    number = run.folder.name
    with open(Path(os.environ["NOTES"]) / f"{number}-{os.getpid()}", "x"):
        pass
    if number == os.environ.get("KILL"):
        os._exit(9)
    time.sleep(0.1)
    return {"val/accuracy": run.config["optimizer"]["lr"], "ebops": 1.0}


Experiment.run = fake
runpy.run_path(str(Path(__file__).parents[2] / "run.py"), run_name="__main__")

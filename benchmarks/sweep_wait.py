"""What a study loses by waiting: the time of trials of unequal length on two workers against the ideal, half of their sum.

    python benchmarks/sweep_wait.py [--unit 10] [--repeats 4]

The trials sleep 1, 1, 1 and 10 units, again and again. The time runs from the first claim of a trial to the end of the last one, as the storage has
them; a batch that waits for its slowest trial takes 1.69 of the ideal. Writes ``benchmarks/results/sweep_wait.{json,md}``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

import optuna

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LENGTHS = (1, 1, 1, 10)
WORKERS = 2


def study(folder: Path, unit: float, trials: int) -> list[optuna.trial.FrozenTrial]:
    """Run a study of sleeping trials on joblib; return its trials."""
    command = [sys.executable, "run.py", "-m", "finetuning=random", f"finetuning.num_trials={trials}", "finetuning.early_stopping.type=null"]
    command += ["tracker=none", "progress=quiet", f"hydra.sweep.dir={folder}", "hydra/launcher=joblib", f"hydra.launcher.n_jobs={WORKERS}"]
    command += ["+hydra.callbacks.dummy._target_=dummy_trials.Dummy"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks")])
    lengths = ",".join(str(unit * length) for length in LENGTHS)
    environment = os.environ | {"PYTHONPATH": path, "PQUANT_ALLOW": "dummy_trials", "LENGTHS": lengths}
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    return optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}").trials


def seconds(trials: list[optuna.trial.FrozenTrial]) -> float:
    """Return the seconds from the first claim to the last end."""
    begins: list[datetime] = [trial.datetime_start for trial in trials if trial.datetime_start]
    ends: list[datetime] = [trial.datetime_complete for trial in trials if trial.datetime_complete]
    return (max(ends) - min(begins)).total_seconds()


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--unit", type=float, default=10.0, help="seconds")
    parser.add_argument("--repeats", type=int, default=4, help="of the four lengths")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trials = study(Path(folder) / "study", arguments.unit, len(LENGTHS) * arguments.repeats)
    taken = seconds(trials)
    busy = sum(seconds([trial]) for trial in trials) / WORKERS / taken
    ideal = sum(LENGTHS) * arguments.unit * arguments.repeats / WORKERS
    text = (
        f"{len(LENGTHS) * arguments.repeats} trials of {LENGTHS} units of {arguments.unit:g} s on {WORKERS} workers of joblib, "
        f"{len(os.sched_getaffinity(0))} cores with a load of {os.getloadavg()[2]:.0f}:\n"
        f"{taken:.0f} s, ideal {ideal:.0f} s, ratio {taken / ideal:.3f}; a worker has a trial in {100 * busy:.0f} % of the time\n"
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sweep_wait.md").write_text(text)
    figures = {**vars(arguments), "seconds": taken, "ideal_seconds": ideal, "ratio": taken / ideal, "busy": busy, "load": os.getloadavg()[2]}
    (RESULTS / "sweep_wait.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

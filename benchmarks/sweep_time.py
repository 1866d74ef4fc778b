"""What a study costs beside its trials, and what parallel trials gain: the same study on the basic launcher and on joblib, by whole processes.

    python benchmarks/sweep_time.py [--trials 16] [--epochs 5] [--jobs 2] [--repeats 1]

Trials are of the default job, digits, with ``--epochs`` in all. The launchers take turns. The start-up of a trial is the time from its being claimed
to the beginning of its run, on the basic launcher, where all trials but the first find everything imported. Writes
``benchmarks/results/sweep_time_<epochs>.{json,md}``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import optuna

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def study(folder: Path, launcher: str, arguments: argparse.Namespace) -> float:
    """Run a study in ``folder`` and return the seconds of the whole process."""
    command = [sys.executable, "run.py", "-m", "finetuning=random", f"finetuning.num_trials={arguments.trials}"]
    command += [
        "finetuning.early_stopping.type=null",
        "tracker=none",
        "progress=quiet",
        "training.pretraining_epochs=0",
        f"training.epochs={arguments.epochs}",
    ]
    command += ["training.fine_tuning_epochs=0", f"hydra.sweep.dir={folder}", f"hydra/launcher={launcher}"]
    command += [f"hydra.launcher.n_jobs={arguments.jobs}"] if launcher == "joblib" else []
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    start = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env=environment)
    return time.perf_counter() - start


def start_ups(folder: Path) -> list[float]:
    """Return for each trial the seconds from being claimed to the beginning of its run."""
    storage = f"sqlite:///{folder / 'study.db'}"
    found = []
    for trial in optuna.load_study(study_name=None, storage=storage).trials:
        summary = folder / str(trial.number) / "summary.json"
        began = summary.stat().st_mtime - json.loads(summary.read_text())["wall_seconds"]
        assert trial.datetime_start is not None
        found.append(began - trial.datetime_start.timestamp())
    return found


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("trials", 16), ("epochs", 5), ("jobs", 2), ("repeats", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {"basic": [], "joblib": []}
    begun: list[float] = []
    for _ in range(arguments.repeats):
        for launcher, taken in seconds.items():
            with tempfile.TemporaryDirectory() as folder:
                taken.append(study(Path(folder) / "study", launcher, arguments))
                begun += start_ups(Path(folder) / "study")[1:] if launcher == "basic" else []
    middle = {launcher: statistics.median(taken) for launcher, taken in seconds.items()}
    ratio, start_up = middle["joblib"] / middle["basic"], statistics.median(begun)
    lines = [
        f"{arguments.trials} trials of {arguments.epochs} epochs, digits, {len(os.sched_getaffinity(0))} cores, {arguments.jobs} jobs under joblib, "
        f"medians of {arguments.repeats}:",
        "",
        "| | seconds |",
        "|---|---:|",
        *(f"| whole study, {launcher} | {taken:.1f} |" for launcher, taken in middle.items()),
        f"| start-up of a trial, in process | {start_up:.2f} |",
        "",
        f"joblib / basic: {ratio:.2f}",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"sweep_time_{arguments.epochs}.md").write_text(text)
    figures = {**vars(arguments), "seconds": seconds, "ratio": ratio, "start_up_seconds": start_up}
    (RESULTS / f"sweep_time_{arguments.epochs}.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()

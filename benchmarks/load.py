"""What a study survives: processes share it, and again and again one of them is killed (SIGKILL) and started anew.

    python benchmarks/load.py [--trials 200] [--workers 2] [--every 30]

Trials are of the default job, digits, with one epoch. The workers take turns to be killed, one each ``--every`` seconds. At the end the study must
have exactly ``--trials`` trials, each complete, with a folder that holds a finished run, and nothing else may be left: no unfinished file, no folder
without a trial, no running trial. Writes ``benchmarks/results/load.{json,md}``; exits with 1 when something is lost or left, or a worker failed.
"""

import argparse
import csv
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import optuna

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
JOB = ["training.pretraining_epochs=0", "training.epochs=1", "training.fine_tuning_epochs=0", "tracker=none", "progress=quiet"]
KEPT = {"study.db", "trials.csv", "optimization_results.yaml", "pareto.html", "multirun.yaml", "locks"}


def worker(folder: Path, trials: int) -> subprocess.Popen[bytes]:
    """Start a process that works on the study in ``folder``."""
    study = ["-m", "finetuning=random", f"finetuning.num_trials={trials}", "finetuning.early_stopping.type=null", f"hydra.sweep.dir={folder}"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"} | {"OMP_NUM_THREADS": "1"}
    with open(folder.with_name("log"), "ab") as said:
        return subprocess.Popen([sys.executable, "run.py", *study, *JOB], cwd=ROOT, stdout=said, stderr=said, env=environment)


def conduct(folder: Path, trials: int, workers: int, every: float) -> tuple[int, int]:
    """Let the study be worked on to its end; return how many workers were killed, and how many failed by themselves."""
    team = [worker(folder, trials) for _ in range(workers)]
    kills = 0
    try:
        for turn in itertools.count():
            until = time.monotonic() + every
            while time.monotonic() < until:
                if all(process.poll() is not None for process in team):
                    return kills, sum(process.returncode != 0 for process in team)
                time.sleep(0.2)
            one = turn % workers
            if team[one].poll() is None:
                team[one].kill()
                team[one].wait()
                team[one] = worker(folder, trials)
                kills += 1
    finally:
        for process in team:
            process.kill()
            process.wait()
    raise AssertionError


def found(folder: Path) -> dict[str, Any]:
    """Return the number of trials by state, in the storage and in ``trials.csv``, of folders by the status of their run, and what nobody owns."""
    trials = optuna.load_study(study_name=None, storage=f"sqlite:///{folder / 'study.db'}").trials
    runs = {path for path in folder.iterdir() if path.is_dir() and path.name != "locks"}
    own = {folder / str(trial.number) for trial in trials}
    with (folder / "trials.csv").open() as file:
        listed = Counter(row["state"] for row in csv.DictReader(file))
    unfinished = [path for path in folder.rglob("*") if path.name.endswith((".tmp", "-journal", "-wal", "-shm"))]
    strangers = [path for path in folder.iterdir() if path.is_file() and path.name not in KEPT]
    owners = (folder / "locks").glob("owner-*")
    return {
        "trials": dict(Counter(trial.state.name for trial in trials)),
        "trials.csv": dict(listed),
        "runs": dict(Counter(json.loads((path / "status.json").read_text())["status"] for path in runs if (path / "summary.json").is_file())),
        "orphans": sorted(str(path.relative_to(folder)) for path in {*unfinished, *strangers, *owners, *(runs - own)}),
    }


def main() -> None:
    """Kill, look, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("trials", 200), ("workers", 2), ("every", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, start = Path(temporary) / "study", time.perf_counter()
        kills, failures = conduct(folder, arguments.trials, arguments.workers, arguments.every)
        seconds, left = time.perf_counter() - start, found(folder)
        said = folder.with_name("log").read_text()
    count = arguments.trials
    whole = not failures and left == {"trials": {"COMPLETE": count}, "trials.csv": {"complete": count}, "runs": {"finished": count}, "orphans": []}
    figures = {**vars(arguments), "kills": kills, "failures": failures, "seconds": seconds, **left, "whole": whole}
    cores = len(os.sched_getaffinity(0))
    text = f"""{count} trials of 1 epoch, digits, {arguments.workers} workers on {cores} cores, one killed every {arguments.every} s:

| | |
|---|---:|
| seconds | {seconds:.0f} |
| workers killed | {kills} |
| workers that failed by themselves | {failures} |
| trials complete | {left["trials"].get("COMPLETE", 0)} |
| trials in another state | {sum(left["trials"].values()) - left["trials"].get("COMPLETE", 0)} |
| finished runs | {left["runs"].get("finished", 0)} |
| orphan files and folders | {len(left["orphans"])} |
"""
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "load.md").write_text(text)
    (RESULTS / "load.json").write_text(json.dumps(figures, indent=2) + "\n")
    if not whole:
        sys.exit(f"{said[-5000:]}\n{json.dumps(left, indent=2)}")


if __name__ == "__main__":
    main()

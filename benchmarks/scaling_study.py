"""What a trial of a study costs beside its training, by the number of trials before it, with each storage and sampler.

    python benchmarks/scaling_study.py [--counts 10 100 1000 10000] [--storages study.db study.journal <URL>] [--samplers random tpe] [--trials 5]

A study is filled with trials, and at each count the next trials are claimed, told and written by the functions that a study uses: CPU milliseconds
of the study's process for a trial (the fastest, which other processes on the machine disturb least) to claim it (ask), to record its command, metrics
and end (tell), to write the study's files once, and for a job's process to read its trial for the first time (open). Waiting for the disk or the
server is not in them: it is a constant per transaction. Writes ``benchmarks/results/scaling_study.{json,md}``, again after every count; storages that
are left out keep their results.
"""

import argparse
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from omegaconf import OmegaConf
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import TrialState, create_trial

from pquant.finetuning.results import COMMAND, METRICS, SECONDS, write_results
from pquant.finetuning.study import open_study, storage
from pquant.finetuning.trial import StudyTrial
from pquant.finetuning.trial_locks import Claims

logging.getLogger("pquant.finetuning.trial").setLevel(logging.ERROR)
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
SPACE: dict[str, Any] = {
    "optimizer.lr": optuna.distributions.FloatDistribution(1e-4, 1e-2, log=True),
    "quantization.default_weight_fractional_bits": optuna.distributions.IntDistribution(3, 7),
}
SAMPLERS: dict[str, Callable[[int], Any]] = {"random": RandomSampler, "tpe": lambda seed: TPESampler(seed=seed, constant_liar=True)}
COSTS = ("ask", "tell", "files", "open")
OBJECTIVE = "val/accuracy"


def attributes(number: int) -> dict[str, Any]:
    """Return what a trial keeps in the storage: its command and thirty metrics."""
    metrics = {OBJECTIVE: 1 / (number + 2), "ebops": 1e4 + number, "sparsity": 0.5, **{f"metric_{index}": index / 7 for index in range(27)}}
    return {COMMAND: f"python run.py optimizer.lr=0.001 quantization.default_weight_fractional_bits=5 seed={number}", METRICS: metrics, SECONDS: 1.0}


class Filled:
    """A study in ``folder`` whose number of trials grows."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.store = storage(name, folder)
        self.study = open_study(f"scaling-{time.time_ns()}", self.store, ["maximize"], {})
        self.claims = Claims(self.study, self.store, folder)

    def fill(self, count: int) -> None:
        """Add trials up to ``count``."""
        for number in range(len(self.study.get_trials(deepcopy=False)), count):
            params = {"optimizer.lr": 1e-4 + 9e-3 * (number * 0.618 % 1), "quantization.default_weight_fractional_bits": 3 + number % 5}
            trial = create_trial(value=1 / (number + 2), params=params, distributions=SPACE, user_attrs=attributes(number))
            self.study.add_trial(trial)

    def next(self, sampler: str) -> dict[str, float]:
        """Return the milliseconds of each cost of the next trial, drawn by a sampler."""
        count = len(self.study.get_trials(deepcopy=False))
        moments = [time.process_time()]
        [trial] = self.claims.claim(1, count + 1, SAMPLERS[sampler], SPACE)
        moments.append(time.process_time())
        for name, value in attributes(count).items():
            trial.set_user_attr(name, value)
        self.study.tell(trial, 0.5, TrialState.COMPLETE)
        moments.append(time.process_time())
        write_results(self.study, self.folder, [OBJECTIVE])
        moments.append(time.process_time())
        self.open(count)
        moments.append(time.process_time())
        return {name: 1e3 * (end - begin) for name, begin, end in zip(COSTS, moments[:-1], moments[1:], strict=True)}

    def open(self, number: int) -> None:
        """Read a trial as the process of its job does, which does not know the study yet."""
        storage.cache_clear()
        node = {"objectives": [OBJECTIVE], "constraints": {}, "storage": self.name, "study_name": self.study.study_name, "pruner": None}
        StudyTrial(OmegaConf.create(node), self.folder / str(number), epochs=1).conduct(_never)


def _never(*arguments: Any) -> dict[str, Any]:
    raise AssertionError("the trial has ended")


def _in_order(label: str) -> tuple[str, str, int]:
    storage_name, sampler, count = label.split(", ")
    return storage_name, sampler, int(count)


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the table of all measured counts."""
    lines = [
        f"CPU milliseconds a trial, {len(os.sched_getaffinity(0))} cores, fastest of some trials:",
        "",
        f"| storage, sampler, trials | {' | '.join(COSTS)} |",
    ]
    lines += ["|---|" + "---:|" * len(COSTS)]
    for name in sorted(found, key=_in_order):
        lines.append(f"| {name} | {' | '.join(f'{found[name][cost]:.1f}' for cost in COSTS)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000, 10000])
    parser.add_argument("--storages", nargs="+", default=["study.journal", "study.db"])
    parser.add_argument("--samplers", nargs="+", default=["random", "tpe"], choices=SAMPLERS)
    parser.add_argument("--trials", type=int, default=5)
    arguments = parser.parse_args()
    file = RESULTS / "scaling_study.json"
    for name in arguments.storages:
        with tempfile.TemporaryDirectory() as folder:
            study = Filled(name, Path(folder))
            for count in arguments.counts:
                study.fill(count)
                for sampler in arguments.samplers:
                    costs = [study.next(sampler) for _ in range(arguments.trials)]
                    label = f"{name.partition(':')[0]}, {sampler}, {count}"
                    found: dict[str, dict[str, float]] = json.loads(file.read_text()) if file.is_file() else {}
                    found[label] = {cost: min(one[cost] for one in costs) for cost in COSTS}
                    print(label, {cost: round(value, 1) for cost, value in found[label].items()}, flush=True)
                    (RESULTS / "scaling_study.md").write_text(table(found))
                    file.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

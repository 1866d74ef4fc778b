"""The result files of a study: ``trials.csv``, ``optimization_results.yaml``, ``pareto.html``, and ``luts.html`` of its exports."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.trial import FrozenTrial, TrialState

from pquant.finetuning.trial_locks import FAILURE, study_lock
from pquant.reporting.headline import duration
from pquant.reporting.luts import write_luts
from pquant.reporting.pareto import write_pareto
from pquant.tracking.files import UNFINISHED, MetricsCsv, plain, write_atomic

log = logging.getLogger(__name__)

SHARE = 0.05
COMMAND, METRICS, SECONDS, SECONDS_SAVED = "command", "metrics", "seconds", "seconds_saved"
STATES = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "stopped early", TrialState.FAIL: "failed"}


class ResultFiles:
    """The result files of a study, kept up to date while the context lasts.

    Each update writes all rows again. Updates are limited to a twentieth of the study's time, for any number of trials.

    Args:
        study: the study.
        folder: the folder of the study.
        objectives: the names of the objectives.
    """

    def __init__(self, study: optuna.Study, folder: Path, objectives: Sequence[str]) -> None:
        self.study, self.folder, self.objectives = study, folder, objectives
        self.next = 0.0

    def __enter__(self) -> "ResultFiles":
        """Return the object itself; it writes nothing yet."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Write the files, unless a signal ends the study at once."""
        if kind is None or issubclass(kind, Exception):
            write_results(self.study, self.folder, self.objectives)

    def update(self) -> None:
        """Write the files, if the last update is long enough ago."""
        start = time.monotonic()
        if start >= self.next:
            write_results(self.study, self.folder, self.objectives)
            now = time.monotonic()
            self.next = now + (1 / SHARE - 1) * (now - start)


def write_results(study: optuna.Study, folder: Path, objectives: Sequence[str]) -> None:
    """Write all files again, one process at a time and atomically, and remove the temporary files of killed processes."""
    with study_lock(folder):
        for unfinished in folder.glob(UNFINISHED):
            unfinished.unlink(missing_ok=True)
        trials = study.get_trials(deepcopy=False)
        MetricsCsv(folder / "trials.csv").rewrite(row(trial, objectives) for trial in trials)
        write_atomic(folder / "optimization_results.yaml", yaml.safe_dump(plain(results(study, objectives)), sort_keys=False, allow_unicode=True))
        chosen = {trial.number for trial in best_trials(study)}
        complete = [trial for trial in trials if trial.state is TrialState.COMPLETE]
        write_pareto(folder / "pareto.html", study.study_name, [point(trial, chosen) for trial in complete])
        write_luts(folder, study.study_name, {f"trial {trial.number}": trial.user_attrs.get(METRICS, {}) for trial in complete})


def row(trial: FrozenTrial, objectives: Sequence[str]) -> dict[str, Any]:
    """Return a trial's row in ``trials.csv``: number, state, feasible, objectives, parameters, metrics, times, failure, command."""
    known = trial.user_attrs
    complete = trial.state is TrialState.COMPLETE
    return {
        "number": trial.number,
        "state": STATES.get(trial.state, trial.state.name.lower()),
        "feasible": feasible(trial) if complete else None,
        **(dict(zip(objectives, trial.values, strict=True)) if complete else dict.fromkeys(objectives)),
        **trial.params,
        **{name: value for name, value in known.get(METRICS, {}).items() if name not in objectives},
        **{name: known.get(name) for name in (SECONDS, SECONDS_SAVED, FAILURE, COMMAND)},
    }


def results(study: optuna.Study, objectives: Sequence[str]) -> dict[str, Any]:
    """Return the content of ``optimization_results.yaml``: the keys of Hydra's sweeper, trial counts and the time that early stopping saved."""
    trials, best = study.get_trials(deepcopy=False), best_trials(study)
    counts = {name: sum(trial.state is state for trial in trials) for state, name in STATES.items()}
    found: dict[str, Any]
    if len(objectives) > 1:
        found = {"solutions": [{"params": trial.params, "values": trial.values, "command": trial.user_attrs.get(COMMAND)} for trial in best]}
    elif best:
        found = {"best_params": best[0].params, "best_value": best[0].value, "best_trial": best[0].number, "command": best[0].user_attrs.get(COMMAND)}
    else:
        found = {"best_params": None, "best_value": None}
    return {
        "name": "optuna",
        **found,
        "study": study.study_name,
        "objectives": list(objectives),
        "trials": counts,
        SECONDS_SAVED: saved_seconds(trials),
    }


def best_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Return the best feasible trial; with several objectives, all feasible trials that are Pareto-optimal."""
    if len(study.directions) > 1:
        return [trial for trial in study.best_trials if feasible(trial)]
    try:
        return [study.best_trial]
    except ValueError:
        return []


def feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial meets the constraints."""
    return all(excess <= 0 for excess in trial.constraints.values())


def saved_seconds(trials: Sequence[FrozenTrial]) -> float:
    """Return the estimated time that early stopping saved: the remaining epochs of each stopped trial times its mean time per epoch."""
    return sum(trial.user_attrs.get(SECONDS_SAVED, 0.0) for trial in trials)


def point(trial: FrozenTrial, chosen: set[int]) -> dict[str, Any]:
    """Return the data of a complete trial for the Pareto page."""
    return {
        "number": trial.number,
        "params": {name: value if isinstance(value, str) else f"{value:.6g}" for name, value in trial.params.items()},
        "command": trial.user_attrs.get(COMMAND, ""),
        "feasible": feasible(trial),
        "best": trial.number in chosen,
        "metrics": trial.user_attrs.get(METRICS, {}),
    }


def log_results(study: optuna.Study, folder: Path, objectives: Sequence[str]) -> None:
    """Log how the study ended."""
    trials = study.get_trials(deepcopy=False)
    found = results(study, objectives)
    running = sum(not trial.state.is_finished() for trial in trials)
    counts = ", ".join(f"{count} {name}" for name, count in found["trials"].items())
    log.info("trials: %s%s", counts, f", {running} in other processes" if running else "")
    if found[SECONDS_SAVED]:
        log.info("early stopping saved about %s of training", duration(found[SECONDS_SAVED]))
    best = best_trials(study)
    for trial in best:
        log.info("best: trial %d, %s: %s", trial.number, _named(objectives, trial), trial.user_attrs.get(COMMAND))
    if not best:
        log.info("no trial is complete and within the constraints")
    log.info("files: %s", folder)


def _named(objectives: Sequence[str], trial: FrozenTrial) -> str:
    return ", ".join(f"{name} = {value:.6g}" for name, value in zip(objectives, trial.values, strict=True))

"""The finetuning section: a study over any field of the configuration."""

import math
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pquant.errors import ConfigError
from pquant.finetuning.objectives import directions
from pquant.settings import Settings, schema, setting


@dataclass(frozen=True)
class Sampler(Settings):
    """The sampler that draws the values of each trial.

    Args:
        type: class name in ``optuna.samplers``.
        params: arguments of the sampler.
    """

    type: str = "TPESampler"
    params: dict[str, Any] = setting({})


@dataclass(frozen=True)
class EarlyStopping(Settings):
    """Optuna's pruner, which stops hopeless trials at the end of an epoch.

    Its steps are epochs, counted from 0. It needs a study with a single objective, and that objective must be a metric of ``metrics.csv``.

    Args:
        type: class name in ``optuna.pruners``; null: no trial is stopped.
        params: arguments of the pruner.
    """

    type: str | None = None
    params: dict[str, Any] = setting({})


@dataclass(frozen=True)
class HyperparameterSearch(Settings):
    """The search space. A group, such as ``pruning``, is a field too: its choices are the names of its files.

    Args:
        numerical: maps a field to [low, high, step] or [low, high, log], integers making an integer range; null removes a field.
        categorical: maps a field to its choices; null removes a field.
    """

    numerical: dict[str, Any] = setting({})
    categorical: dict[str, Any] = setting({})

    def __post_init__(self) -> None:
        """Check that every range is [low, high, step] and every list of choices has one."""
        super().__post_init__()
        for name, values in self.numerical.items():
            if values is not None and not _is_range(values):
                raise ConfigError(
                    f"HyperparameterSearch.numerical['{name}'] must be [low, high, step] with low <= high and step > 0, "
                    f"or [low, high, log] with 0 < low <= high, got {values!r}"
                )
        for name, values in self.categorical.items():
            if values is not None and not (isinstance(values, list) and values):
                raise ConfigError(f"HyperparameterSearch.categorical['{name}'] must be a list of choices, got {values!r}")


def _is_range(values: Any) -> bool:
    if not (isinstance(values, list) and len(values) == 3):
        return False
    low, high, step = values
    if not (_is_number(low) and _is_number(high) and low <= high):
        return False
    return low > 0 if step == "log" else _is_number(step) and step > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


@schema("finetuning", "finetuning")
@dataclass(frozen=True)
class FineTuning(Settings):
    """A study of several trials, or a single run.

    Args:
        experiment_name: the name of the study and of its folder.
        model_name: given on the command line, it chooses the preset of the model, as ``model`` does.
        sampler: the sampler that draws the values of each trial.
        num_trials: the total number of trials; 0 means a single run.
        hyperparameter_search: the search space.
        objectives: metrics of ``summary.json`` to optimize; several give a Pareto front.
        directions: "maximize" or "minimize", one per objective; only needed for metrics that this package does not know.
        constraints: upper bounds on metrics, as {ebops: 50000}; a trial above one is infeasible and never the best.
        early_stopping: the pruner that stops trials which are unlikely to be the best.
        storage: a file in the study's folder (``*.db``: SQLite, ``*.journal``: Optuna's journal) or the URL of a database.
        max_failure_rate: share of ``num_trials`` that may fail before the study stops.
        trial_timeout: maximum time of a trial in seconds, from the start of its job; a trial that takes longer is ended and counts as failed. null:
            no limit.

    Raises:
        ConfigError: a value out of range, or directions that do not fit the objectives.
    """

    experiment_name: str = "experiment_1"
    model_name: str = "resnet18"
    sampler: Sampler = Sampler(type="GridSampler")
    num_trials: int = setting(0, ge=0, le=1_000_000)
    hyperparameter_search: HyperparameterSearch = HyperparameterSearch()
    objectives: list[str] = setting(["val/accuracy"])
    directions: list[str] = setting([])
    constraints: dict[str, float] = setting({})
    early_stopping: EarlyStopping = EarlyStopping()
    storage: str = "study.db"
    max_failure_rate: float = setting(0.25, ge=0, le=1)
    trial_timeout: float | None = setting(None, gt=0)

    def __post_init__(self) -> None:
        """Check the fields, and that the names of the folder and the file stay inside the folder of all sweeps."""
        super().__post_init__()
        for field in ("experiment_name", "storage"):
            path = PurePath(getattr(self, field))
            if ".." in path.parts or path.is_absolute():
                raise self.error(
                    field, "a name within the folder of all sweeps" if field == "experiment_name" else "a file in the study's folder or a URL"
                )
        directions(self.objectives, self.directions)

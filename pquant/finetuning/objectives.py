"""The objectives of a study: metrics of ``summary.json``, each with a direction."""

from collections.abc import Mapping, Sequence
from typing import Any

from pquant.errors import ConfigError, did_you_mean
from pquant.training.task import Classification, Regression

METRICS = {task.metric: "maximize" if task.higher_is_better else "minimize" for task in (Classification, Regression)}
DIRECTIONS = METRICS | {
    "loss": "minimize",
    "sparsity": "maximize",
    **dict.fromkeys(("ebops", "weight_bits", "size_bytes", "nonzero_params", "params", "wall_seconds"), "minimize"),
    **dict.fromkeys(("luts_estimated", "luts_yosys", "registers", "latency_cycles", "delay_ns_estimated"), "minimize"),
}


def directions(objectives: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """Return "maximize" or "minimize" for every objective: the one ``given``, else the known direction of the metric.

    Raises:
        ConfigError: no objectives, another number of directions, no such direction, or a metric whose direction is not known.
    """
    if not objectives:
        raise ConfigError("FineTuning.objectives must name at least one metric of summary.json, such as val/accuracy")
    if given:
        if len(given) != len(objectives) or not set(given) <= {"maximize", "minimize"}:
            raise ConfigError(f"FineTuning.directions must be 'maximize' or 'minimize' for each of {list(objectives)}, got {list(given)}")
        return list(given)
    for name in objectives:
        if name.rpartition("/")[2] not in DIRECTIONS:
            raise ConfigError(
                f"FineTuning.objectives: is a larger '{name}' better{did_you_mean(name, DIRECTIONS) or '?'} give finetuning.directions; "
                f"known: {', '.join(DIRECTIONS)}"
            )
    return [DIRECTIONS[name.rpartition("/")[2]] for name in objectives]


def validation_metric(metrics: Mapping[str, Any]) -> float | None:
    """Return the task's metric on the validation data, the default objective; None if there is none."""
    return next((metrics[f"val/{name}"] for name in METRICS if f"val/{name}" in metrics), None)

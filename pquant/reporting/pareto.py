"""The page of a study: its trials as points, the metric against EBOPs, sparsity and LUTs."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pquant.finetuning.objectives import METRICS
from pquant.pareto import front
from pquant.reporting.headline import label, show
from pquant.reporting.html import render
from pquant.tracking.files import plain, write_atomic

AXES = {"ebops": "minimize", "sparsity": "maximize", "rtl/luts_estimated": "minimize"}


def write_pareto(path: Path, study: str, points: Sequence[dict[str, Any]]) -> None:
    """Write a self-contained page with a plot of the validation metric against each of ``AXES`` that is known.

    Args:
        path: the file.
        study: the study's name.
        points: the complete trials: number, params (text by field), command, feasible, best, metrics.
    """
    named = [{"name": f"trial {point['number']}"} | point for point in points]
    write_atomic(path, render("pareto.html.j2", study=study, plots=scatter_plots(named), count=len(points)))


def scatter_plots(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the plots of points that also have a ``name``, for the page's script; a plot needs a point that has both metrics."""
    metrics = validation_metrics(one["metrics"] for one in points)
    return plain([plot for metric in metrics for axis in AXES for plot in [_plot(points, axis, metric)] if plot])


def validation_metrics(summaries: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the validation metrics that any of the summaries has, in the order of the summaries."""
    return list(dict.fromkeys(name for summary in summaries for name in METRICS if summary.get(f"val/{name}") is not None))


def _plot(points: Sequence[dict[str, Any]], axis: str, metric: str) -> dict[str, Any]:
    known = [one for one in points if one["metrics"].get(axis) is not None and one["metrics"].get(f"val/{metric}") is not None]
    if not known:
        return {}
    able, words = [one for one in known if one["feasible"]], label(axis.rpartition("/")[2])
    places = [(one["metrics"][axis], one["metrics"][f"val/{metric}"]) for one in able]
    best = front(places, AXES[axis], METRICS[metric])  # type: ignore[arg-type]
    return {
        "title": f"{label(metric)} on the validation data against {words}",
        "x": {"label": words, "percent": axis == "sparsity"},
        "y": {"label": label(metric), "percent": metric == "accuracy"},
        "front": [able[index]["number"] for index in best],
        "points": [_point(one, axis, metric) for one in known],
    }


def _point(one: dict[str, Any], axis: str, metric: str) -> dict[str, Any]:
    metrics = one["metrics"]
    named = {metric: f"val/{metric}", "sparsity": "sparsity", "ebops": "ebops", "weight_bits": "weight_bits", "size_bytes": "size_bytes"}
    shown = {label(name): show(key, metrics[key]) for name, key in named.items() if metrics.get(key) is not None}
    return {
        "x": metrics[axis],
        "y": metrics[f"val/{metric}"],
        **{key: one[key] for key in ("number", "name", "command", "feasible", "best")},
        "lines": [f"{name}={value}" for name, value in one["params"].items()] + [f"{name}: {value}" for name, value in shown.items()],
    }

"""The page of a study: its trials as points, accuracy against what it costs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pquant.finetuning.objectives import METRICS
from pquant.reporting.headline import label, show
from pquant.reporting.html import render
from pquant.tracking.files import plain, write_atomic

AXES = {"ebops": "minimize", "sparsity": "maximize"}


def write_pareto(path: Path, study: str, points: Sequence[dict[str, Any]]) -> None:
    """Write a self-contained page with a plot of the validation metric against EBOPs and one against sparsity.

    Args:
        path: the file.
        study: the study's name.
        points: the complete trials: number, params (text by field), command, feasible, best, figures.
    """
    plots = [plot for axis in AXES for plot in [_plot(points, axis)] if plot]
    write_atomic(path, render("pareto.html.j2", study=study, plots=plain(plots), count=len(points)))


def front(points: Sequence[tuple[float, float]], x_direction: str, y_direction: str) -> list[int]:
    """Return the indices of the points (x, y) that no other surpasses, by x; of equal points the first."""
    signs = [1 if direction == "minimize" else -1 for direction in (x_direction, y_direction)]
    order = sorted(range(len(points)), key=lambda index: (signs[0] * points[index][0], signs[1] * points[index][1], index))
    best, kept = float("inf"), []
    for index in order:
        if signs[1] * points[index][1] < best:
            best = signs[1] * points[index][1]
            kept.append(index)
    return sorted(kept, key=lambda index: points[index][0])


def _plot(points: Sequence[dict[str, Any]], axis: str) -> dict[str, Any]:
    metric = next((name for name in METRICS for one in points if f"val/{name}" in one["figures"]), None)
    known = [one for one in points if metric and axis in one["figures"] and f"val/{metric}" in one["figures"]]
    if metric is None or not known:
        return {}
    able = [one for one in known if one["feasible"]]
    places = [(one["figures"][axis], one["figures"][f"val/{metric}"]) for one in able]
    return {
        "title": f"{label(metric)} on the validation data against {label(axis)}",
        "x": {"label": label(axis), "percent": axis == "sparsity"},
        "y": {"label": label(metric), "percent": metric == "accuracy"},
        "front": [able[index]["number"] for index in front(places, AXES[axis], METRICS[metric])],
        "points": [_point(one, axis, metric) for one in known],
    }


def _point(one: dict[str, Any], axis: str, metric: str) -> dict[str, Any]:
    figures = one["figures"]
    named = {metric: f"val/{metric}", "sparsity": "sparsity", "ebops": "ebops", "weight_bits": "weight_bits", "size_bytes": "size_bytes"}
    said = {label(name): show(key, figures[key]) for name, key in named.items() if key in figures}
    return {
        "x": figures[axis],
        "y": figures[f"val/{metric}"],
        **{key: one[key] for key in ("number", "command", "feasible", "best")},
        "lines": [f"{name}={value}" for name, value in one["params"].items()] + [f"{name}: {value}" for name, value in said.items()],
    }

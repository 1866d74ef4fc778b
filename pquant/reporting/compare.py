"""The page that compares runs: a sortable table, Pareto fronts, and parallel coordinates of settings and metrics."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pquant.errors import ConfigError
from pquant.finetuning.objectives import DIRECTIONS
from pquant.reporting.headline import label, show
from pquant.reporting.html import render
from pquant.reporting.pareto import scatter_plots, validation_metrics
from pquant.tracking.environment import dotted, saved_command
from pquant.tracking.files import plain, read_json, write_atomic

SECTIONS_LEFT_OUT = ("tracker", "progress", "resume", "dry_run", "finetuning")
METRICS_SHOWN = ("sparsity", "weight_bits", "ebops", "nonzero_params", "size_bytes", "rtl/luts_estimated", "rtl/luts_yosys", "wall_seconds")
PARTS = {"test": "Test", "val": "Validation", "float": "Float"}
AXES = 8
"""The number of settings with an axis."""


@dataclass(frozen=True)
class RunRecord:
    """A finished run: its settings by dotted key as text, the metrics of ``summary.json``, and the command that repeats it."""

    name: str
    folder: Path
    settings: Mapping[str, str]
    metrics: Mapping[str, Any]
    command: str


def load_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Return the finished runs in folders and their subfolders, each once, named by the part of the path that differs.

    Raises:
        ConfigError: a folder without a finished run.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        summaries = sorted(folder.rglob("summary.json"), key=_numbers_last)
        if not summaries:
            raise ConfigError(f"a run's folder, or one with runs below it, has a summary.json; '{folder}' has none")
        found |= dict.fromkeys(path.parent.resolve() for path in summaries)
    above = Path(os.path.commonpath([path.parent for path in found]))
    return [_load(path, path.relative_to(above).as_posix()) for path in found]


def write_comparison(path: Path, runs: Sequence[RunRecord]) -> None:
    """Write a self-contained page that compares ``runs``; it links to their reports, relative to ``path``."""
    compared = validation_metrics(run.metrics for run in runs)
    measured = [f"{part}/{metric}" for metric in compared for part in PARTS]
    metrics = [name for name in (*measured, *METRICS_SHOWN) if any(run.metrics.get(name) is not None for run in runs)]
    varied = varied_settings(runs)
    points = [_point(number, run, varied, compared, runs) for number, run in enumerate(runs)]
    axes = [_axis(name, [run.settings.get(name) for run in runs]) for name in varied[:AXES]]
    axes += [_metric_axis(name, runs) for name in metrics if name not in measured or name.startswith("test/")]
    page = render(
        "compare.html.j2",
        count=len(runs),
        plots=scatter_plots(points),
        axes=plain(axes),
        runs=plain([{key: point[key] for key in ("name", "command", "lines")} for point in points]),
        settings=varied,
        columns={name: _words(name) for name in metrics},
        rows=[_row(run, path.parent, metrics) for run in runs],
    )
    write_atomic(path, page)


def varied_settings(runs: Sequence[RunRecord]) -> list[str]:
    """Return the dotted keys whose values differ between runs. A key that varies exactly as an earlier key of its section is left out, such
    as the class of a method besides its name.
    """
    found: dict[tuple[str, tuple[int, ...]], str] = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(key) for run in runs]
        if len(set(values) - {None}) > 1:
            found.setdefault((key.partition(".")[0], tuple(map(values.index, values))), key)
    return list(found.values())


def _load(folder: Path, name: str) -> RunRecord:
    config = folder / ".hydra" / "config.yaml"
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{config} cannot be read as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{config} holds no settings")
    metrics = read_json(folder / "summary.json")
    return RunRecord(name, folder, _texts(settings), metrics, saved_command(folder) or "")


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    settings = {section: value for section, value in config.items() if section not in SECTIONS_LEFT_OUT}
    return {key: value if isinstance(value, str) else json.dumps(plain(value)) for key, value in dotted(settings)}


def _numbers_last(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in path.parts]


def _words(name: str) -> str:
    part, _, metric = name.rpartition("/")
    return f"{PARTS[part]} {label(metric).lower()}" if part in PARTS else label(metric)


def _point(number: int, run: RunRecord, varied: Sequence[str], compared: Sequence[str], runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return a run's data for the plots; the best runs are those with the best value of a metric on the validation data."""
    params = {name: run.settings[name] for name in varied if name in run.settings}
    shown = [
        f"{_words(name)}: {show(name, run.metrics[name])}"
        for name in (*(f"test/{metric}" for metric in compared), *METRICS_SHOWN)
        if run.metrics.get(name) is not None
    ]
    point = {"number": number, "name": run.name, "params": params, "command": run.command, "feasible": True, "metrics": run.metrics}
    return point | {
        "best": any(run is _best(runs, metric) for metric in compared),
        "lines": [f"{name}={value}" for name, value in params.items()] + shown,
    }


def _best(runs: Sequence[RunRecord], metric: str) -> RunRecord | None:
    known = [run for run in runs if run.metrics.get(f"val/{metric}") is not None]
    sign = 1 if DIRECTIONS[metric] == "maximize" else -1
    return max(known, key=lambda run: sign * run.metrics[f"val/{metric}"], default=None)


def _axis(name: str, values: Sequence[str | None]) -> dict[str, Any]:
    """Return the axis of a setting: numbers where all are, choices otherwise."""
    numbers = [_number(value) for value in values]
    if all((number is None) == (value is None) for number, value in zip(numbers, values, strict=True)):
        return {"label": name, "values": numbers, "choices": None, "percent": False}
    return {"label": name, "values": list(values), "choices": sorted({value for value in values if value is not None}), "percent": False}


def _metric_axis(name: str, runs: Sequence[RunRecord]) -> dict[str, Any]:
    percent = name.rpartition("/")[2] in ("accuracy", "sparsity")
    return {"label": _words(name), "values": [run.metrics.get(name) for run in runs], "choices": None, "percent": percent}


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _row(run: RunRecord, page: Path, metrics: Sequence[str]) -> dict[str, Any]:
    report = run.folder / "report.html"
    link = Path(os.path.relpath(report, page.resolve())).as_posix() if report.is_file() else None
    cells = [{"value": run.metrics.get(name), "text": show(name, run.metrics.get(name))} for name in metrics]
    return {"name": run.name, "link": link, "settings": run.settings, "cells": cells}

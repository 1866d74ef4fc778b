"""The page that compares runs: a table to sort, fronts, and every run as a line through its settings and figures."""

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
from pquant.reporting.pareto import judged_by, scatter_plots
from pquant.tracking.environment import dotted, saved_command
from pquant.tracking.files import plain, write_atomic

NO_SETTINGS = ("tracker", "progress", "resume", "dry_run", "finetuning")
FIGURES = ("sparsity", "weight_bits", "ebops", "nonzero_params", "size_bytes", "rtl/luts_estimated", "rtl/luts_yosys", "wall_seconds")
PARTS = {"test": "Test", "val": "Validation", "float": "Float"}
AXES = 8
"""Settings that have an axis of their own."""


@dataclass(frozen=True)
class RunRecord:
    """What a finished run left: its settings by dotted key as text, the figures of ``summary.json``, and the command that makes it again."""

    name: str
    folder: Path
    settings: Mapping[str, str]
    figures: Mapping[str, Any]
    command: str


def load_runs(folders: Sequence[Path]) -> list[RunRecord]:
    """Return the finished runs in folders, however deep, each once, named by where they differ.

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
    metric = judged_by(run.figures for run in runs)
    measured = [name for part in PARTS if metric for name in [f"{part}/{metric}"]]
    figures = [name for name in (*measured, *FIGURES) if any(run.figures.get(name) is not None for run in runs)]
    varied = varied_settings(runs)
    points = [_point(number, run, varied, metric, runs) for number, run in enumerate(runs)]
    axes = [_axis(name, [run.settings.get(name) for run in runs]) for name in varied[:AXES]]
    axes += [_figure_axis(name, runs) for name in figures if name not in measured[1:]]
    page = render(
        "compare.html.j2",
        count=len(runs),
        plots=scatter_plots(points),
        axes=plain(axes),
        runs=plain([{key: point[key] for key in ("name", "command", "lines")} for point in points]),
        settings=varied,
        columns={name: _words(name) for name in figures},
        rows=[_row(run, path.parent, figures) for run in runs],
    )
    write_atomic(path, page)


def varied_settings(runs: Sequence[RunRecord]) -> list[str]:
    """Return the dotted keys that tell runs apart: with different values among those that have them, and saying more than an earlier one of their
    section (not a method's name beside its class).
    """
    found: dict[tuple[str, tuple[int, ...]], str] = {}
    for key in dict.fromkeys(key for run in runs for key in run.settings):
        values = [run.settings.get(key) for run in runs]
        if len(set(values) - {None}) > 1:
            found.setdefault((key.partition(".")[0], tuple(map(values.index, values))), key)
    return list(found.values())


def _load(folder: Path, name: str) -> RunRecord:
    config = folder / ".hydra" / "config.yaml"
    settings = yaml.safe_load(config.read_text(encoding="utf-8")) if config.is_file() else {}
    figures = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return RunRecord(name, folder, _texts(settings), figures, saved_command(folder) or "")


def _texts(config: Mapping[str, Any]) -> dict[str, str]:
    settings = {section: value for section, value in config.items() if section not in NO_SETTINGS}
    return {key: value if isinstance(value, str) else json.dumps(plain(value)) for key, value in dotted(settings)}


def _numbers_last(path: Path) -> list[tuple[int, str]]:
    return [(int(part) if part.isdigit() else -1, part) for part in path.parts]


def _words(name: str) -> str:
    part, _, figure = name.rpartition("/")
    return f"{PARTS[part]} {label(figure).lower()}" if part in PARTS else label(figure)


def _point(number: int, run: RunRecord, varied: Sequence[str], metric: str | None, runs: Sequence[RunRecord]) -> dict[str, Any]:
    """Return what the plots show of a run; the best is that with the best metric on the validation data."""
    params = {name: run.settings[name] for name in varied if name in run.settings}
    said = [f"{_words(name)}: {show(name, run.figures[name])}" for name in (f"test/{metric}", *FIGURES) if run.figures.get(name) is not None]
    point = {"number": number, "name": run.name, "params": params, "command": run.command, "feasible": True, "figures": run.figures}
    return point | {"best": run is _best(runs, metric), "lines": [f"{name}={value}" for name, value in params.items()] + said}


def _best(runs: Sequence[RunRecord], metric: str | None) -> RunRecord | None:
    known = [run for run in runs if run.figures.get(f"val/{metric}") is not None]
    sign = 1 if metric and DIRECTIONS[metric] == "maximize" else -1
    return max(known, key=lambda run: sign * run.figures[f"val/{metric}"], default=None)


def _axis(name: str, values: Sequence[str | None]) -> dict[str, Any]:
    """Return the axis of a setting: numbers where all are, choices otherwise."""
    numbers = [_number(value) for value in values]
    if all((number is None) == (value is None) for number, value in zip(numbers, values, strict=True)):
        return {"label": name, "values": numbers, "choices": None, "percent": False}
    return {"label": name, "values": list(values), "choices": sorted({value for value in values if value is not None}), "percent": False}


def _figure_axis(name: str, runs: Sequence[RunRecord]) -> dict[str, Any]:
    percent = name.rpartition("/")[2] in ("accuracy", "sparsity")
    return {"label": _words(name), "values": [run.figures.get(name) for run in runs], "choices": None, "percent": percent}


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _row(run: RunRecord, page: Path, figures: Sequence[str]) -> dict[str, Any]:
    report = run.folder / "report.html"
    link = Path(os.path.relpath(report, page.resolve())).as_posix() if report.is_file() else None
    cells = [{"value": run.figures.get(name), "text": show(name, run.figures.get(name))} for name in figures]
    return {"name": run.name, "link": link, "settings": run.settings, "cells": cells}

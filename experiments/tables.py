"""Collect the runs of a sweep in ``results/``, and write the tables of the pages from there; all folders use this module.

``python experiments/<name>/table.py`` writes the tables from ``results/``; with a sweep's folder it first collects the metrics there.
"""

import csv
import json
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
END = "<!-- end -->"
Row = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table: a metric of ``results/runs.csv``, a factor, and the number format."""

    title: str
    metric: str
    form: str
    factor: float = 1.0


ACCURACY = Column("test accuracy %", "test/accuracy", ".1f", 100)
SPARSITY = Column("sparsity %", "sparsity", ".1f", 100)
EBOPS = Column("EBOPs", "ebops", ",.0f")
COLUMNS = (ACCURACY, SPARSITY, EBOPS)


def results(script: str, metrics: Iterable[str]) -> list[Row]:
    """Return the rows of ``results/runs.csv`` beside a script, collected first from the sweep that the command line names, if any."""
    folder = Path(script).parent / "results"
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]), folder, list(metrics))
    return read(folder / "runs.csv")


def collect(sweep: Path, folder: Path, metrics: Sequence[str]) -> None:
    """Write ``runs.csv``, one row per summary under ``<sweep>/<variant>/<seed>/``, and ``origin.json``: date, machine and command of the runs.

    A sweep of some variants replaces their rows; the rows of the others stay, with their dates and machines.
    """
    summaries = {file: json.loads(file.read_text()) for file in sorted(sweep.rglob("summary.json"))}
    rows = [
        {"variant": file.relative_to(sweep).parts[0], "seed": summary["seed"]} | {name: summary.get(name, "") for name in metrics}
        for file, summary in summaries.items()
    ]
    swept = {row["variant"] for row in rows}
    kept = [row for row in read(folder / "runs.csv") if row["variant"] not in swept]
    before = json.loads((folder / "origin.json").read_text()) if kept else {"dates": [], "machines": []}
    folder.mkdir(exist_ok=True)
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["variant", "seed", *metrics], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept + rows, key=lambda row: (row["variant"], row["seed"])))
    overrides = OmegaConf.load(sweep / "multirun.yaml").hydra.overrides.task
    arguments = [one for one in overrides if not one.startswith(("experiment/", "seed="))]  # a sweep may have been run in parts
    origin = {
        "dates": sorted({date.fromtimestamp(file.stat().st_mtime).isoformat() for file in summaries} | {*before["dates"]}),
        "machines": sorted(
            {f"{one['cpu']}, {one['cores']} cores, torch {one['version/torch']}" for one in summaries.values()} | {*before["machines"]}
        ),
        "command": " ".join(["python run.py -m", *arguments]),
    }
    (folder / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")


def read(file: Path) -> list[Row]:
    """Return the rows of a CSV file, [] if there is none; empty cells are left out, and numbers are parsed."""
    if not file.exists():
        return []
    with file.open(newline="") as lines:
        return [{name: _value(text) for name, text in row.items() if text} for row in csv.DictReader(lines)]


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def of(rows: Iterable[Row], variant: str) -> list[Row]:
    """Return the rows of one variant."""
    return [row for row in rows if row["variant"] == variant]


def table(first: str, lines: Mapping[str, Sequence[Row]], columns: Sequence[Column]) -> str:
    """Return a Markdown table with one line per label: mean and standard deviation over its rows, and their number."""
    text = [f"| {first} | {' | '.join(column.title for column in columns)} | runs |", "|---" + "|---:" * (len(columns) + 1) + "|"]
    for label, rows in lines.items():
        cells = [spread([column.factor * row[column.metric] for row in rows if column.metric in row], column.form) for column in columns]
        text.append(f"| {label} | {' | '.join(cells)} | {len(rows) or '-'} |")
    return "\n".join(text) + "\n"


def spread(values: Sequence[float], form: str) -> str:
    """Return mean and standard deviation as text, the value alone if all are equal, "-" for no values."""
    if len(set(values)) < 2:
        return f"{values[0]:{form}}" if values else "-"
    return f"{statistics.mean(values):{form}} ± {statistics.stdev(values):{form}}"


def origin(folder: Path, rows: Sequence[Row] = ()) -> str:
    """Return the line under a table: dates, machines, seeds and command of its runs (all of the folder, unless given)."""
    if not (folder / "origin.json").exists():
        return "\nNot measured yet.\n"
    made = json.loads((folder / "origin.json").read_text())
    seeds = sorted({row["seed"] for row in rows or read(folder / "runs.csv")})
    spreads = "Mean ± standard deviation. " if len(seeds) > 1 else ""
    return f"\n{spreads}Measured {', '.join(made['dates'])}; {'; '.join(made['machines'])}; seeds {', '.join(map(str, seeds))}; `{made['command']}`\n"


def insert(page: Path, name: str, text: str) -> None:
    """Insert text into a page, between the comment that names its script (and table) and the next ``<!-- end -->``."""
    begin = f"<!-- table: {name} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}{END}{rest.split(END, 1)[1]}")

"""From the runs of a sweep to ``results/``, and from there to the tables in pages: what all folders share.

``python experiments/<name>/table.py`` makes the tables again from ``results/``; given a sweep's folder it first takes the figures from there.
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
    """A column of a table: the figure of ``results/runs.csv``, a factor, and how a number is written."""

    title: str
    figure: str
    form: str
    factor: float = 1.0


ACCURACY = Column("test accuracy %", "test/accuracy", ".1f", 100)
SPARSITY = Column("zeros %", "sparsity", ".1f", 100)
EBOPS = Column("EBOPs", "ebops", ",.0f")
COLUMNS = (ACCURACY, SPARSITY, EBOPS)


def results(script: str, figures: Iterable[str]) -> list[Row]:
    """Return the rows of ``results/runs.csv`` beside a script, taken first from the sweep that the command line names, if it names one."""
    folder = Path(script).parent / "results"
    if len(sys.argv) > 1:
        collect(Path(sys.argv[1]), folder, list(figures))
    return read(folder / "runs.csv")


def collect(sweep: Path, folder: Path, figures: Sequence[str]) -> None:
    """Write ``runs.csv``, a row for each summary under ``<sweep>/<variant>/<seed>/``, and ``origin.json``: when, where and how they were made.

    A sweep of some of the variants replaces their rows; those of the others stay, with their dates and machines.
    """
    summaries = {file: json.loads(file.read_text()) for file in sorted(sweep.rglob("summary.json"))}
    rows = [
        {"variant": file.relative_to(sweep).parts[0], "seed": summary["seed"]} | {name: summary.get(name, "") for name in figures}
        for file, summary in summaries.items()
    ]
    swept = {row["variant"] for row in rows}
    kept = [row for row in read(folder / "runs.csv") if row["variant"] not in swept]
    before = json.loads((folder / "origin.json").read_text()) if kept else {"dates": [], "machines": []}
    folder.mkdir(exist_ok=True)
    with (folder / "runs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["variant", "seed", *figures], lineterminator="\n")
        writer.writeheader()
        writer.writerows(sorted(kept + rows, key=lambda row: (row["variant"], row["seed"])))
    overrides = OmegaConf.load(sweep / "multirun.yaml").hydra.overrides.task
    arguments = [one for one in overrides if not one.startswith(("experiment/", "seed="))]  # a sweep may have been made part by part
    origin = {
        "dates": sorted({date.fromtimestamp(file.stat().st_mtime).isoformat() for file in summaries} | {*before["dates"]}),
        "machines": sorted(
            {f"{one['cpu']}, {one['cores']} cores, torch {one['version/torch']}" for one in summaries.values()} | {*before["machines"]}
        ),
        "command": " ".join(["python run.py -m", *arguments]),
    }
    (folder / "origin.json").write_text(json.dumps(origin, indent=2) + "\n")


def read(file: Path) -> list[Row]:
    """Return the rows of a CSV file, none where it is missing; what is empty is left out, and what looks like a number is one."""
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
    """Return a Markdown table with a line for each label: mean and standard deviation over its rows, and how many there are."""
    text = [f"| {first} | {' | '.join(column.title for column in columns)} | runs |", "|---" + "|---:" * (len(columns) + 1) + "|"]
    for label, rows in lines.items():
        cells = [spread([column.factor * row[column.figure] for row in rows if column.figure in row], column.form) for column in columns]
        text.append(f"| {label} | {' | '.join(cells)} | {len(rows) or '-'} |")
    return "\n".join(text) + "\n"


def spread(values: Sequence[float], form: str) -> str:
    """Return mean and standard deviation as text, "-" for no values."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{form}} ± {deviation:{form}}"


def origin(folder: Path, rows: Sequence[Row] = ()) -> str:
    """Return the line under a table: when, where, with which seeds and by which command its runs (all of the folder, unless given) were made."""
    if not (folder / "origin.json").exists():
        return "\nNot measured yet.\n"
    made = json.loads((folder / "origin.json").read_text())
    seeds = sorted({row["seed"] for row in rows or read(folder / "runs.csv")})
    return (
        f"\nMean ± standard deviation. Measured {', '.join(made['dates'])}; {'; '.join(made['machines'])}; seeds {', '.join(map(str, seeds))}; "
        f"`{made['command']}`\n"
    )


def insert(page: Path, name: str, text: str) -> None:
    """Put text into a page, between the comment that names the script (and the table) which makes it and the next ``<!-- end -->``."""
    begin = f"<!-- table: {name} -->"
    before, rest = page.read_text().split(begin)
    page.write_text(f"{before}{begin}\n{text}{END}{rest.split(END, 1)[1]}")

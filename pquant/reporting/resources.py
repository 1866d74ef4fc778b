"""The table of an export's resources by layer."""

import csv
from pathlib import Path

from pquant.reporting.headline import label

RESOURCES = Path("export", "rtl", "resources.csv")


def resource_table(folder: Path) -> list[list[str]]:
    """Return the rows of a run's ``resources.csv`` as text, the labels of the columns first; [] if there is none."""
    if not (folder / RESOURCES).is_file():
        return []
    with (folder / RESOURCES).open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return [[label(name) for name in header], *([row[0], *map(_cell, row[1:])] for row in rows)]


def _cell(text: str) -> str:
    try:
        value = float(text)
    except ValueError:
        return "-"
    return f"{value:,.0f}" if value >= 100 or value.is_integer() else f"{value:.1f}"

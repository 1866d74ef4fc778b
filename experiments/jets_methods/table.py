"""The table of this folder: ``python experiments/jets_methods/table.py [<sweep's folder>]``."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, COLUMNS, Column, Row, insert, of, origin, read, results, spread

HERE = Path(__file__).parent
SECONDS = Column("seconds", "wall_seconds", ",.0f")
SHOWN = (*COLUMNS, SECONDS)
METHODS = "none dst pdp wanda mdmm cs autosparse activation_pruning".split()
SIDES = ("ours", "PQuantML")


def cells(rows: Sequence[Row]) -> list[str]:
    """Return mean and deviation of each metric of some runs."""
    return [spread([column.factor * row[column.metric] for row in rows if column.metric in row], column.form) for column in SHOWN]


def difference(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """Return by how much the mean accuracy of ours is above theirs, in points."""
    if not ours or not theirs:
        return "-"
    means = [100 * statistics.mean(row[ACCURACY.metric] for row in rows) for rows in (ours, theirs)]
    return f"{means[0] - means[1]:+.1f}"


def main() -> None:
    """Write the table into this folder's page."""
    rows = results(__file__, [column.metric for column in SHOWN]), read(HERE / "results" / "pquantml.csv")
    text = [f"| configuration | by | {' | '.join(column.title for column in SHOWN)} | ours - PQuantML | runs |", "|---|---|" + "---:|" * 6]
    for variant in (f"{method}_{bits}" for bits in ("8bit", "hgq") for method in METHODS):
        sides = [of(each, variant) for each in rows]
        for side, runs, last in zip(SIDES, sides, (difference(*sides), ""), strict=True):
            text.append(f"| `{variant}` | {side} | {' | '.join(cells(runs))} | {last} | {len(runs) or '-'} |")
    insert(HERE / "README.md", "experiments/jets_methods/table.py", "\n".join(text) + "\n" + origin(HERE / "results"))


if __name__ == "__main__":
    main()

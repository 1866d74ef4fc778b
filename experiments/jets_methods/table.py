"""The table of this folder: ``python experiments/jets_methods/table.py [<sweep's folder>]``."""

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, COLUMNS, SPARSITY, Column, Row, insert, of, origin, read, results, spread

HERE = Path(__file__).parent
SECONDS = Column("seconds", "wall_seconds", ",.0f")
SHOWN = (*COLUMNS, SECONDS)
METHODS = "none dst pdp wanda mdmm cs autosparse activation_pruning".split()
EQUAL = 2.0
"""Points of sparsity within which accuracies are compared."""


def cells(rows: Sequence[Row]) -> list[str]:
    """Return mean and deviation of each metric of some runs."""
    return [spread([column.factor * row[column.metric] for row in rows if column.metric in row], column.form) for column in SHOWN]


def difference(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """Return by how much the mean accuracy of ours is above theirs, in points, where both have about the same sparsity."""
    if not ours or not theirs:
        return "-"
    (accuracy, sparsity), other = (
        [100 * statistics.mean(row[name] for row in rows) for name in (ACCURACY.metric, SPARSITY.metric)] for rows in (ours, theirs)
    )
    return f"{accuracy - other[0]:+.1f}" if abs(sparsity - other[1]) <= EQUAL else "other sparsity"


def main() -> None:
    """Write the table into this folder's page."""
    rows = results(__file__, [column.metric for column in SHOWN]), read(HERE / "results" / "pquantml.csv")
    text = [f"| configuration | by | {' | '.join(column.title for column in SHOWN)} | ours - PQuantML | runs |", "|---|---|" + "---:|" * 6]
    for variant in (f"{method}_{bits}" for bits in ("8bit", "hgq") for method in METHODS):
        theirs = of(rows[1], variant)
        ours = {name: runs for name in (variant, f"{variant}_matched") if (runs := of(rows[0], name)) or name == variant}
        lines = [(name, "ours", runs, difference(runs, theirs)) for name, runs in ours.items()]
        for name, side, runs, last in (*lines, (variant, "PQuantML", theirs, "")):
            text.append(f"| `{name}` | {side} | {' | '.join(cells(runs))} | {last} | {len(runs) or '-'} |")
    insert(HERE / "README.md", "experiments/jets_methods/table.py", "\n".join(text) + "\n" + origin(HERE / "results"))


if __name__ == "__main__":
    main()

"""The tables of this folder: ``python experiments/jets/table.py [<sweep's folder>]``."""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import COLUMNS, insert, of, origin, results, table

HERE = Path(__file__).parent
METHODS = "none dst pdp wanda mdmm cs autosparse activation_pruning".split()


def main() -> None:
    """Write both tables into this folder's page."""
    rows = results(__file__, [column.metric for column in COLUMNS])
    ours = {f"`{method}_{bits}`": of(rows, f"{method}_{bits}") for method in METHODS for bits in ("8bit", "hgq")}
    with (HERE / "results" / "published.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    published = "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])
    insert(HERE / "README.md", "experiments/jets/table.py published", published)
    insert(HERE / "README.md", "experiments/jets/table.py ours", table("configuration", ours, COLUMNS) + origin(HERE / "results"))


if __name__ == "__main__":
    main()

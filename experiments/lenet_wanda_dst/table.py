"""The table of this folder: ``python experiments/lenet_wanda_dst/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, SPARSITY, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
COLUMNS = (Column(ACCURACY.title, ACCURACY.metric, ".2f", 100), Column(SPARSITY.title, SPARSITY.metric, ".2f", 100))
VARIANTS = {
    "dense": "dense",
    "DST": "dst",
    "DST, 8 bits": "dst_8bit",
    "Wanda, 50 %": "wanda_50",
    "magnitude, 50 %": "magnitude_50",
    "Wanda, 80 %": "wanda_80",
    "magnitude, 80 %": "magnitude_80",
    "Wanda, 2:4": "wanda_2of4",
}


def main() -> None:
    """Write the table into this folder's page."""
    rows = results(__file__, [column.metric for column in COLUMNS])
    text = table("method", {label: of(rows, name) for label, name in VARIANTS.items()}, COLUMNS) + origin(HERE / "results")
    insert(HERE / "README.md", "experiments/lenet_wanda_dst/table.py", text)


if __name__ == "__main__":
    main()

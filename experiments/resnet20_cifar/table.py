"""The table of this folder: ``python experiments/resnet20_cifar/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, EBOPS, SPARSITY, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
COLUMNS = (ACCURACY, SPARSITY, Column("million EBOPs", EBOPS.metric, ".0f", 1e-6))
METHODS = "float none dst pdp wanda mdmm cs autosparse activation_pruning".split()


def main() -> None:
    """Write the table into this folder's page."""
    rows = results(__file__, [column.metric for column in COLUMNS])
    text = table("method", {f"`{name}`": of(rows, name) for name in METHODS}, COLUMNS) + origin(HERE / "results")
    insert(HERE / "README.md", "experiments/resnet20_cifar/table.py", text)


if __name__ == "__main__":
    main()

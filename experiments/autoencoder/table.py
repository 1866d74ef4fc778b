"""The table of this folder: ``python experiments/autoencoder/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import EBOPS, SPARSITY, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
VARIANTS = "none_8bit dst_8bit none_hgq".split()
COLUMNS = (Column("float rmse", "float/rmse", ".3f"), Column("test rmse", "test/rmse", ".3f"), SPARSITY, EBOPS)


def main() -> None:
    """Write the table into this folder's page."""
    rows = results(__file__, [column.metric for column in COLUMNS])
    text = table("configuration", {f"`{name}`": of(rows, name) for name in VARIANTS}, COLUMNS) + origin(HERE / "results")
    insert(HERE / "README.md", "experiments/autoencoder/table.py", text)


if __name__ == "__main__":
    main()

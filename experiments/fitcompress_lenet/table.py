"""The tables of this folder: ``python experiments/fitcompress_lenet/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, SPARSITY, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
METRICS = ["test/accuracy", "sparsity", "weight_bits", "size_bytes", "params"]
SIZE = Column("size / float32", "size", ".4f")
COLUMNS = (Column(ACCURACY.title, ACCURACY.metric, ".2f", 100), SIZE, SPARSITY, Column("bits of the rest", "weight_bits", ".2f"))
WAYS = {"FITCompress, greedy": "greedy", "FITCompress, full": "full"} | {f"{bits} bits, magnitude": f"uniform_{bits}bit" for bits in (4, 3)}


def main() -> None:
    """Write the tables into this folder's page."""
    rows = [row | {SIZE.metric: row["size_bytes"] / (4 * row["params"])} for row in results(__file__, METRICS)]
    for goal in ("02", "008"):
        lines = {label: of(rows, f"{name}_{goal}") for label, name in WAYS.items()}
        insert(HERE / "README.md", f"experiments/fitcompress_lenet/table.py {goal}", table("way", lines, COLUMNS) + origin(HERE / "results"))


if __name__ == "__main__":
    main()

"""The tables of this folder: ``python experiments/fitcompress/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, SPARSITY, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
FIGURES = ["test/accuracy", "sparsity", "weight_bits", "size_bytes", "params"]
SETS = {"mnist_10": (8, 5, 4), "mnist_02": (8, 5, 4, 3), "cifar_10": (8, 5, 4)}
SIZE = Column("size / float32", "size", ".4f")
COLUMNS = (Column(ACCURACY.title, ACCURACY.figure, ".2f", 100), SIZE, SPARSITY, Column("bits of the rest", "weight_bits", ".2f"))


def main() -> None:
    """Write the tables into this folder's page."""
    rows = [row | {SIZE.figure: row["size_bytes"] / (4 * row["params"])} for row in results(__file__, FIGURES)]
    for name, uniform in SETS.items():
        lines = {f"FITCompress, {search}": of(rows, f"{name}_{search}") for search in ("greedy", "full")}
        lines |= {f"{bits} bits, magnitude": of(rows, f"{name}_{bits}bit") for bits in uniform}
        insert(HERE / "README.md", f"experiments/fitcompress/table.py {name}", table("way", lines, COLUMNS) + origin(HERE / "results"))


if __name__ == "__main__":
    main()

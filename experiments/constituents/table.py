"""The table of this folder: ``python experiments/constituents/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, EBOPS, SPARSITY, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
VARIANTS = "deep_sets deep_sets_hgq interaction_network jedi_linear jedi_linear_hgq particle_transformer conv1d".split()
LUTS = (Column("LUTs, Yosys", "rtl/luts_yosys", ",.0f"), Column("LUTs, estimated", "rtl/luts_estimated", ",.0f"))
COLUMNS = (Column("float accuracy %", "float/accuracy", ".1f", 100), ACCURACY, SPARSITY, EBOPS, *LUTS, Column("parameters", "params", ",.0f"))


def main() -> None:
    """Write the table into this folder's page."""
    rows = results(__file__, [column.metric for column in COLUMNS])
    text = table("configuration", {f"`{name}`": of(rows, name) for name in VARIANTS}, COLUMNS) + origin(HERE / "results")
    insert(HERE / "README.md", "experiments/constituents/table.py", text)


if __name__ == "__main__":
    main()

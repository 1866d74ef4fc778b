"""The tables of this folder: ``python experiments/distillation/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, SPARSITY, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
COLUMNS = (ACCURACY, Column("float baseline %", "float/accuracy", ".1f", 100), SPARSITY, Column("test loss", "test/loss", ".3f"))
SETTINGS = ("magnitude_95", "pdp_95", "bits_3", "bits_2")
TEACHERS = {
    "none": "none",
    "T = 2": "teacher",
    "T = 2, not in pretraining": "late",
    "T = 4": "hot",
    "T = 2, features too": "features",
}


def main() -> None:
    """Write the tables into this folder's page."""
    rows = results(__file__, [column.metric for column in COLUMNS])
    for setting in SETTINGS:
        lines = {label: of(rows, f"{setting}_{variant}") for label, variant in TEACHERS.items()}
        insert(HERE / "README.md", f"experiments/distillation/table.py {setting}", table("teacher", lines, COLUMNS))
    insert(HERE / "README.md", "experiments/distillation/table.py origin", origin(HERE / "results"))


if __name__ == "__main__":
    main()

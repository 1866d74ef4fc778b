"""The tables of this folder: ``python experiments/ablations/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import COLUMNS, Column, insert, of, origin, results, table

HERE = Path(__file__).parent
BITS = (*COLUMNS, Column("bits of a weight", "weight_bits", ".2f"))
METHODS = ("dst", "wanda", "magnitude")
TABLES = {
    "order": ({f"{first} first, `{method}`": f"first_{first}_{method}" for method in METHODS for first in ("pruning", "quantization")}, COLUMNS),
    "rewind": ({f"`{policy.replace('_', '-')}`": f"rewind_{policy}" for policy in ("never", "every_round", "post_training_stage")}, COLUMNS),
    "granularity": ({f"`{shared}`": f"bits_{shared}" for shared in ("per_tensor", "per_channel", "per_weight")}, BITS),
}


def main() -> None:
    """Write the tables into this folder's page."""
    rows = results(__file__, [column.metric for column in BITS])
    for name, (variants, columns) in TABLES.items():
        text = table(name, {label: of(rows, variant) for label, variant in variants.items()}, columns) + origin(HERE / "results")
        insert(HERE / "README.md", f"experiments/ablations/table.py {name}", text)


if __name__ == "__main__":
    main()

"""The table of a model's layers, as ``dry_run=true`` prints it."""

from collections.abc import Mapping, Sequence
from typing import Any


def print_layers(rows: Sequence[Mapping[str, Any]], unconverted: Sequence[str], method: str) -> None:
    """Print one row a layer (see :func:`pquant.layer_table`), and what stays float."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="What will be compressed")
    for column in ("layer", "type", "shape"):
        table.add_column(column, no_wrap=True)
    table.add_column("pruned by")
    for column in ("weight", "input", "output"):
        table.add_column(f"{column}\nbits", justify="right")
    for row in rows:
        shape = " x ".join(map(str, row.get("shape", [])))
        pruned = method if row.get("prunable") else "-"
        bits = [_bits(row[key]) if key in row else "" for key in ("weight_bits", "input_bits", "output_bits")]
        table.add_row(row["name"], row["type"], shape, pruned if "params" in row else "", *bits)
    console = Console()
    console.print(table)
    for left in unconverted:
        console.print(f"stays float: {left}", markup=False)


def _bits(width: float | None) -> str:
    return "float" if width is None else f"{width:g}"

"""The table of a model's layers."""

from typing import Any

from torch import nn

from pquant.layers.base import CompressedLayer
from pquant.layers.coverage import coverage
from pquant.layers.example import Example
from pquant.layers.unconverted import unconverted
from pquant.metrics import ebops, layer_table, sizes, sparsity
from pquant.pruning.method import NoPruner
from pquant.reporting.headline import label, show

COLUMNS = ("sparsity", "input_bits", "weight_bits", "output_bits", "ebops")
WIDTH = 120
"""Width of the table if the output is not a terminal."""


def summarize(model: nn.Module, example_input: Example | None = None) -> None:
    """Print one row per layer of a compressed or finalized model, as it would be finalized now, and the calls that stay float.

    A row has the layer's name, class and weight shape, the pruning method, the sparsity, the mean total bits of input, weight and output, and the
    EBOPs of one inference ("-" if the input's shape is not known). The last row has the shares and sums of the whole model.

    Args:
        model: the result of ``compress`` or ``finalize``.
        example_input: a batch as the model takes it, to find functional calls that stay float.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Layers as finalized", show_footer=True)
    rows = layer_table(model)
    for name, footer in (("layer", "all"), ("type", ""), ("shape", f"{sizes(model)['params']:,}"), ("pruned by", "")):
        table.add_column(name, footer, no_wrap=name != "pruned by")
    total = {"sparsity": sparsity(model)} | ({"ebops": ebops(model)} if all(row["ebops"] is not None for row in rows) else {})
    for name in COLUMNS:
        table.add_column(label(name).replace(" ", "\n"), show(name, total[name]) if name in total else "", justify="right")
    for row in rows:
        shape = " x ".join(map(str, row.get("shape", [])))
        table.add_row(row["name"] or "-", row["type"], shape, _method(model.get_submodule(row["name"])), *(_cell(row, name) for name in COLUMNS))
    console = Console(markup=False)
    if not console.is_terminal and not console.is_jupyter:
        console.width = WIDTH
    console.print(table)
    if hasattr(model, "float_cost"):
        shares = [f"{100 * share:.1f} % of the {name}" for name, share in coverage(model).items()]
        console.print(f"quantized: {', '.join(shares)}")
    for left in unconverted(model, example_input):
        console.print(f"stays float: {left}")


def _method(layer: nn.Module) -> str:
    if not isinstance(layer, CompressedLayer):
        return ""
    return "-" if isinstance(layer.pruner, NoPruner) else type(layer.pruner.method).__name__


def _cell(row: dict[str, Any], name: str) -> str:
    if name not in row:
        return ""
    return "float" if name.endswith("_bits") and row[name] is None else show(name, row[name])

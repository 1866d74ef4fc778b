"""The tables and the plot of this folder: ``python experiments/digits_methods/table.py [<sweep's folder>]``."""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import COLUMNS, ROOT, insert, of, origin, results, table

HERE = Path(__file__).parent
VARIANTS = "none dst pdp_80 pdp_90 wanda_80 wanda_90 mdmm_80 mdmm_90 cs autosparse activation_pruning".split()


def main() -> None:
    """Write the table into this folder's page and docs/pruning.md, and docs/images/digits_methods.svg."""
    rows = results(__file__, [column.figure for column in COLUMNS])
    text = table("method", {f"`{name}`": of(rows, name) for name in VARIANTS}, COLUMNS) + origin(HERE / "results")
    for page in (HERE / "README.md", ROOT / "docs" / "pruning.md"):
        insert(page, "experiments/digits_methods/table.py", text)
    plt.rcParams["svg.hashsalt"] = "pquant"
    figure, axis = plt.subplots(figsize=(6.5, 4), layout="constrained")
    for name in VARIANTS:
        runs = of(rows, name)
        axis.scatter([100 * run["sparsity"] for run in runs], [100 * run["test/accuracy"] for run in runs], label=name.replace("_", " "), s=22)
    axis.set(xlabel="zeros among the deployed weights, %", ylabel="test accuracy, %")
    axis.legend(frameon=False, fontsize=8)
    figure.savefig(ROOT / "docs" / "images" / "digits_methods.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()

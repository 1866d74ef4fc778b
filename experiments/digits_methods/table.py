"""The tables and the plot of this folder: ``python experiments/digits_methods/table.py [<sweep's folder>]``."""

import statistics
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, COLUMNS, ROOT, SPARSITY, Row, insert, of, origin, results, table

HERE = Path(__file__).parent
VARIANTS = "none dst pdp_80 pdp_90 wanda_80 wanda_90 mdmm_80 mdmm_90 cs autosparse activation_pruning".split()


def draw(rows: list[Row]) -> None:
    """Write docs/images/digits_methods.svg: a line for each method, a dot for each run, a bar at their mean."""
    plt.rcParams["svg.hashsalt"] = "pquant"
    figure, axes = plt.subplots(1, 2, figsize=(6.5, 4), layout="constrained", sharey=True)
    for axis, column, color in zip(axes, (ACCURACY, SPARSITY), ("tab:blue", "tab:orange"), strict=True):
        for place, name in enumerate(VARIANTS):
            values = [column.factor * row[column.metric] for row in of(rows, name)]
            axis.scatter(values, [place] * len(values), s=22, color=color, alpha=0.5, linewidths=0)
            axis.scatter(statistics.mean(values), place, s=120, marker="|", color="black")
        axis.set(xlabel=column.title, yticks=range(len(VARIANTS)), yticklabels=[name.replace("_", " ") for name in VARIANTS])
        axis.grid(axis="y", linewidth=0.5, alpha=0.5)
    axes[0].invert_yaxis()
    figure.savefig(ROOT / "docs" / "images" / "digits_methods.svg", metadata={"Date": None})


def main() -> None:
    """Write the table into this folder's page and docs/pruning.md, and the plot."""
    rows = results(__file__, [column.metric for column in COLUMNS])
    text = table("method", {f"`{name}`": of(rows, name) for name in VARIANTS}, COLUMNS) + origin(HERE / "results")
    for page in (HERE / "README.md", ROOT / "docs" / "pruning.md"):
        insert(page, "experiments/digits_methods/table.py", text)
    draw(rows)


if __name__ == "__main__":
    main()

"""The tables and plots of this folder: ``python experiments/mnist_pareto/table.py [<sweep's folder>]``."""

import csv
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from pquant.pareto import front

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import COLUMNS, EBOPS, ROOT, Column, Row, insert, of, origin, read, results, spread, table

HERE = Path(__file__).parent
LUTS = Column("LUTs, estimated", "rtl/luts_estimated", ",.0f")
FAMILIES = {"HGQ, rising beta": "hgq_front", "fixed bits, PDP": "fixed_", "FITCompress": "fitcompress_"}
VERILOG = {"HGQ, short run": "hgq_short_rtl"}
GOALS = ("02", "05", "10")
SINGLE = {f"{bits} bits, PDP to 90 %": f"fixed_{bits}bit_90" for bits in (2, 3, 4, 6, 8)} | {
    f"FITCompress to {int(goal)} %": f"fitcompress_{goal}" for goal in GOALS
}


def family(rows: list[Row], start: str) -> list[Row]:
    """Return the rows of the variants with this prefix."""
    return [row for row in rows if row["variant"].startswith(start)]


def least(rows: list[Row], level: float, metric: str) -> list[float]:
    """Return, by seed, the minimum of a metric among the models that reach an accuracy; seeds without one are left out."""
    reached = [row for row in rows if row["test/accuracy"] >= level]
    return [min(row[metric] for row in reached if row["seed"] == seed) for seed in sorted({row["seed"] for row in reached})]


def levels(rows: list[Row], at: Iterable[float], columns: Mapping[str, tuple[str, str]]) -> str:
    """Return the table of the minimum that reaches each accuracy; a column is a metric of the variants with a prefix."""
    text = [f"| test accuracy of at least | {' | '.join(f'{name} | seeds' for name in columns)} |", "|---" + "|---:|---:" * len(columns) + "|"]
    for level in at:
        found = [least(family(rows, start), level, metric) for start, metric in columns.values()]
        cells = [f"{spread(each, ',.0f')} | {len(each)}" for each in found]
        text.append(f"| {100 * level:.0f} % | {' | '.join(cells)} |")
    return "\n".join(text) + "\n"


def bits_by_layer(sweep: Path) -> None:
    """Write results/layers.csv for runs with FITCompress: the bits of each layer, sign included."""
    searches = sorted(sweep.glob("*/*/fitcompress.json"))
    if not searches:
        return
    with (HERE / "results" / "layers.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", "layer", "bits"])
        for found in searches:
            layers = json.loads(found.read_text())["layers"]
            writer.writerows([*found.parts[-3:-1], name, layer["bits"]] for name, layer in layers.items())


def draw_front(axis: Axes, rows: list[Row], families: Mapping[str, str], cost: Column) -> None:
    """Draw models and each family's front: accuracy against a cost."""
    for label, start in families.items():
        places = [(float(row[cost.metric]), 100 * row["test/accuracy"]) for row in family(rows, start)]
        best = front(places, "minimize", "maximize")
        if places:
            (line,) = axis.step(*zip(*(places[index] for index in best), strict=True), where="post", label=label)
            axis.scatter(*zip(*places, strict=True), s=8, color=line.get_color(), alpha=0.4)
    axis.set(xscale="log", xlabel=cost.title)
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def draw_fronts(rows: list[Row]) -> None:
    """Write docs/images/mnist_pareto.svg: against EBOPs, and against LUTs for exported models."""
    figure, axes = plt.subplots(1, 2, figsize=(6.5, 4), layout="constrained", sharey=True)
    draw_front(axes[0], rows, FAMILIES, EBOPS)
    draw_front(axes[1], rows, VERILOG, LUTS)
    axes[0].set(ylabel="test accuracy, %", ylim=(84, None))
    axes[1].set_xticks([5_000, 10_000, 20_000, 50_000], ["5k", "10k", "20k", "50k"])
    axes[1].minorticks_off()
    figure.savefig(ROOT / "docs" / "images" / "mnist_pareto.svg", metadata={"Date": None})


def draw_bits(rows: list[Row]) -> None:
    """Write docs/images/layer_bits.svg: mean over the seeds, and every seed as a dot."""
    names = list(dict.fromkeys(row["layer"] for row in rows))
    figure, axis = plt.subplots(figsize=(6.5, 3), layout="constrained")
    for place, goal in enumerate(GOALS):
        groups = [[row["bits"] for row in of(rows, f"fitcompress_{goal}") if row["layer"] == name] for name in names]
        at = [index + 0.27 * (place - 1) for index in range(len(names))]
        axis.bar(at, [sum(group) / max(len(group), 1) for group in groups], 0.25, label=f"{int(goal)} % of float32", alpha=0.7)
        for x, group in zip(at, groups, strict=True):
            axis.scatter([x] * len(group), group, s=8, color="black", zorder=2)
    axis.set(xticks=range(len(names)), xticklabels=names, ylabel="bits of a weight (32: not lowered)")
    axis.legend(frameon=False)
    figure.savefig(ROOT / "docs" / "images" / "layer_bits.svg", metadata={"Date": None})


def main() -> None:
    """Write the tables of this folder's page and of docs/hgq.md, and the plots in docs/images."""
    rows = results(__file__, [column.metric for column in (*COLUMNS, LUTS)])
    if len(sys.argv) > 1:
        bits_by_layer(Path(sys.argv[1]))
    ways = [row for start in FAMILIES.values() for row in family(rows, start)]
    ebops = levels(rows, (0.97, 0.96, 0.95, 0.90), {name: (start, EBOPS.metric) for name, start in FAMILIES.items()}) + origin(HERE / "results", ways)
    for page in (HERE / "README.md", ROOT / "docs" / "hgq.md"):
        insert(page, "experiments/mnist_pareto/table.py ebops", ebops)
    costs = {f"{name}: {cost.title}": (start, cost.metric) for name, start in VERILOG.items() for cost in (LUTS, EBOPS)}
    exported = [row for start in VERILOG.values() for row in of(rows, start)]
    luts = levels(rows, (0.94, 0.93, 0.92, 0.90, 0.85), costs) + origin(HERE / "results", exported)
    insert(HERE / "README.md", "experiments/mnist_pareto/table.py luts", luts)
    single = table("one network", {label: of(rows, name) for label, name in SINGLE.items()}, COLUMNS) + origin(HERE / "results", ways)
    insert(HERE / "README.md", "experiments/mnist_pareto/table.py single", single)
    plt.rcParams["svg.hashsalt"] = "pquant"
    draw_fronts(rows)
    draw_bits(read(HERE / "results" / "layers.csv"))


if __name__ == "__main__":
    main()

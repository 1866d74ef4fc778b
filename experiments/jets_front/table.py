"""The tables and the plot of this folder: ``python experiments/jets_front/table.py [<sweep's folder>]``."""

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from pquant.pareto import front
from pquant.reporting.luts import fit_luts

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import ACCURACY, EBOPS, ROOT, SPARSITY, Column, Row, insert, of, origin, read, results, spread, table

HERE = Path(__file__).parent
LUTS = Column("LUTs, Yosys", "rtl/luts_yosys", ",.0f")
ESTIMATED = Column("LUTs, estimated", "rtl/luts_estimated", ",.0f")
SECONDS = Column("seconds", "wall_seconds", ",.0f")
OWN = Column("EBOPs, HGQ2's count", "ebops_hgq2", ",.0f")
VALIDATION = "val/accuracy"
TOLERANCE = 1.05
"""What a controller may be above its target, as a factor."""
TARGETS = (500, 1000, 2000, 4000, 8000)
WRAPPING = (1000, 2000)
"""Targets of the runs whose data wrap around."""
LABELS = ("ours", "HGQ2")


def models(rows: Sequence[Row]) -> list[Row]:
    """Return the models of a front: those with a target, and the archive of the rising beta."""
    archive = "rising_front" if of(rows, "rising_front") else "rising"
    return [row for row in rows if row["variant"] == archive or str(row["variant"]).startswith("target_")]


def best(rows: Sequence[Row], budget: float) -> dict[int, float]:
    """Return, by seed, the test accuracy of the model within a budget of EBOPs that has the highest validation accuracy."""
    within = [row for row in rows if row["ebops"] <= TOLERANCE * budget]
    seeds = sorted({row["seed"] for row in within})
    return {seed: max((row for row in within if row["seed"] == seed), key=lambda row: row[VALIDATION])[ACCURACY.metric] for seed in seeds}


def budgets(sides: Sequence[Sequence[Row]]) -> str:
    """Return the table of the best model within each budget, and by how much ours is above HGQ2's for the seeds that both have."""
    text = [f"| EBOPs at most | {' | '.join(f'test accuracy %, {label}' for label in LABELS)} | ours - HGQ2 | seeds |", "|---|---:|---:|---:|---:|"]
    for budget in TARGETS:
        ours, theirs = (best(rows, budget) for rows in sides)
        both = sorted({*ours} & {*theirs})
        cells = [spread([100 * each[seed] for seed in both], ".1f") for each in (ours, theirs)]
        cells.append(spread([100 * (ours[seed] - theirs[seed]) for seed in both], "+.1f").replace("± +", "± "))
        text.append(f"| {budget:,} | {' | '.join(cells)} | {len(both) or '-'} |")
    return "\n".join(text) + "\n"


def targets(ours: Sequence[Row], theirs: Sequence[Row]) -> str:
    """Return the table of the runs with a target, on both sides, and of the float network."""
    lines = {f"ours, {target:,} EBOPs": of(ours, f"target_{target}") for target in TARGETS}
    lines |= {f"ours, {target:,} EBOPs, data wrap around": of(ours, f"wrap_{target}") for target in WRAPPING}
    lines |= {f"HGQ2, {target:,} EBOPs": of(theirs, f"target_{target}") for target in TARGETS}
    lines |= {"ours, rising beta (last model)": of(ours, "rising"), "float network": of(ours, "float")}
    return table("run", lines, (ACCURACY, EBOPS, OWN, LUTS, ESTIMATED, SPARSITY, SECONDS))


def exported(ours: Sequence[Row]) -> str:
    """Return the line through the LUTs of all exports that Yosys counted, but for those whose data wrap around."""
    places = [(row["ebops"], row[LUTS.metric]) for row in ours if LUTS.metric in row and not str(row["variant"]).startswith("wrap_")]
    if len({ebops for ebops, _ in places}) < 3:
        return ""
    fit = fit_luts(*zip(*places, strict=True))
    return f"\nThe line of least squares through {len(places)} exports: LUTs = {fit.slope:.3f} · EBOPs {fit.intercept:+.0f}.\n"


def published() -> str:
    """Return the table of published numbers, and the fit of the published LUTs to EBOPs."""
    with (HERE / "results" / "published.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    text = "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])
    places = [(row["EBOPs"], row[LUTS.title]) for row in read(HERE / "results" / "published.csv") if LUTS.title in row]
    fit = fit_luts(*zip(*places, strict=True))
    residuals = ", ".join(f"{residual:+.0f}" for residual in fit.residuals)
    line = f"LUTs = {fit.slope:.3f} · EBOPs {fit.intercept:+.0f}"
    return text + f"\nThe line of least squares through these {len(places)} counts: {line}; residuals {residuals}.\n"


def draw(axis: Axes, rows: Sequence[Row], label: str) -> None:
    """Draw the models of all seeds, and the front that validation accuracy chooses."""
    places = [(float(row["ebops"]), 100 * row[ACCURACY.metric]) for row in rows]
    chosen = front([(float(row["ebops"]), row[VALIDATION]) for row in rows], "minimize", "maximize")
    if places:
        (line,) = axis.plot(*zip(*(places[index] for index in chosen), strict=True), label=label)
        axis.scatter(*zip(*places, strict=True), s=8, color=line.get_color(), alpha=0.4)


def plot(sides: Sequence[Sequence[Row]], baseline: Sequence[Row]) -> None:
    """Write docs/images/jets_front.svg: both tools on the simulated jets, and beside them HGQ's published models on OpenML's."""
    figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", width_ratios=(2, 1))
    for rows, label in zip(sides, LABELS, strict=True):
        draw(axes[0], rows, label)
    for row in baseline[:1]:
        axes[0].axhline(100 * row[ACCURACY.metric], color="black", lw=0.8, ls=":", label="float network")
    hgq = [row for row in read(HERE / "results" / "published.csv") if row["work"] == "HGQ"]
    axes[1].plot([row["EBOPs"] for row in hgq], [row["accuracy %"] for row in hgq], "s--", color="tab:green", label="HGQ, published models")
    axes[0].set(xscale="log", xlabel="EBOPs, one count", ylabel="test accuracy, %", title="simulated jets", xlim=(250, 20_000), ylim=(56, None))
    axes[1].set(xscale="log", xlabel="EBOPs, as published", ylabel="validation accuracy, %", title="another set: OpenML's jets")
    for axis in axes:
        axis.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(ROOT / "docs" / "images" / "jets_front.svg", metadata={"Date": None})


def main() -> None:
    """Write the tables of this folder's page, and the plot in docs/images."""
    metrics = [column.metric for column in (ACCURACY, SPARSITY, EBOPS, LUTS, ESTIMATED, SECONDS)]
    ours, theirs = results(__file__, [*metrics, VALIDATION]), read(HERE / "results" / "hgq2.csv")
    sides = models(ours), models(theirs)
    page = HERE / "README.md"
    insert(page, "experiments/jets_front/table.py budgets", budgets(sides) + origin(HERE / "results"))
    insert(page, "experiments/jets_front/table.py targets", targets(ours, theirs) + exported(ours) + origin(HERE / "results"))
    insert(page, "experiments/jets_front/table.py published", published())
    plt.rcParams["svg.hashsalt"] = "pquant"
    plot(sides, of(ours, "float"))


if __name__ == "__main__":
    main()

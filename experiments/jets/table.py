"""The tables of this folder: ``python experiments/jets/table.py [<sweep's folder>]``."""

import csv
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tables import COLUMNS, Column, insert, of, origin, read, results, table

from pquant.reporting.luts import fit_luts

HERE = Path(__file__).parent
LUTS = Column("LUTs, Yosys", "rtl/luts_yosys", ",.0f")
ESTIMATED = Column("LUTs, estimated", "rtl/luts_estimated", ",.0f")
SHOWN = (*COLUMNS, LUTS, ESTIMATED)
METHODS = "none dst pdp wanda mdmm cs autosparse activation_pruning".split()


def main() -> None:
    """Write both tables into this folder's page."""
    rows = results(__file__, [column.metric for column in SHOWN])
    ours = {f"`{method}_{bits}`": of(rows, f"{method}_{bits}") for method in METHODS for bits in ("8bit", "hgq")}
    with (HERE / "results" / "published.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    published = "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] * len(head), *lines])
    insert(HERE / "README.md", "experiments/jets/table.py published", published + line_through(head))
    insert(HERE / "README.md", "experiments/jets/table.py ours", table("configuration", ours, SHOWN) + origin(HERE / "results"))


def line_through(head: list[str]) -> str:
    """Return the fit of the published LUTs to EBOPs, as text."""
    ebops, luts = (next(name for name in head if name.startswith(title)) for title in ("EBOPs", "LUTs, Yosys"))
    places = [(row[ebops], row[luts]) for row in read(HERE / "results" / "published.csv") if luts in row]
    fit = fit_luts(*zip(*places, strict=True))
    residuals = ", ".join(f"{residual:+.0f}" for residual in fit.residuals)
    line = f"LUTs = {fit.slope:.3f} · EBOPs {fit.intercept:+.0f}"
    return f"\nThe line of least squares through these {len(places)} counts: {line}; residuals {residuals}.\n"


if __name__ == "__main__":
    main()

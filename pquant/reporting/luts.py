"""The page that fits the look-up tables of exported models to their EBOPs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pquant.errors import ConfigError
from pquant.reporting.headline import label, show
from pquant.reporting.html import render
from pquant.reporting.plots import fit_plot, residual_plot
from pquant.tracking.files import write_atomic

COUNTS = ("rtl/luts_yosys", "rtl/luts_estimated")
FEWEST = 3
PAGE = "luts.html"


@dataclass(frozen=True)
class LutFit:
    """The least-squares fit LUTs = slope * EBOPs + intercept; ``residuals`` (N,) are LUTs minus the fit, ``r_squared`` the explained variance."""

    slope: float
    intercept: float
    residuals: np.ndarray
    r_squared: float


def fit_luts(ebops: Sequence[float], luts: Sequence[float]) -> LutFit:
    """Return the least-squares fit of a line to the points (EBOPs, LUTs).

    Raises:
        ConfigError: fewer than 3 points, or all of the same EBOPs.
    """
    if len(ebops) < FEWEST or len(set(ebops)) < 2:
        raise ConfigError(
            f"a fit of LUTs to EBOPs needs at least {FEWEST} exports that differ in EBOPs, got {len(ebops)} with {len(set(ebops))} EBOPs"
        )
    x, y = np.asarray(ebops, dtype=np.float64), np.asarray(luts, dtype=np.float64)
    matrix = np.stack([x, np.ones_like(x)], axis=1)
    (slope, intercept), *_ = np.linalg.lstsq(matrix, y, rcond=None)
    residuals = y - matrix @ (slope, intercept)
    spread = float(((y - y.mean()) ** 2).sum())
    return LutFit(float(slope), float(intercept), residuals, 1 - float((residuals**2).sum()) / spread if spread else 1.0)


def write_luts(folder: Path, title: str, exports: Mapping[str, Mapping[str, Any]]) -> bool:
    """Write ``luts.html`` into a folder: the fit on all exports to Verilog, and its residuals; return whether there are enough for a fit.

    Args:
        folder: the folder of the study, the archive, or the page that compares runs.
        title: the headline.
        exports: the metrics of ``summary.json`` by the name of the run; those without LUTs and EBOPs are left out. The count of Yosys is used where
            all have it, else alkaid's estimate.
    """
    known = {name: one for name, one in exports.items() if one.get("rtl/luts_estimated") is not None and one.get("ebops") is not None}
    count = next((name for name in COUNTS if all(one.get(name) is not None for one in known.values())), COUNTS[-1])
    places = [(float(one["ebops"]), float(one[count])) for one in known.values()]
    ebops, luts = [place[0] for place in places], [place[1] for place in places]
    try:
        fit = fit_luts(ebops, luts)
    except ConfigError:
        return False
    rows = [_row(name, *place, residual) for name, place, residual in zip(known, places, fit.residuals.tolist(), strict=True)]
    words = label(count.partition("/")[2])
    page = render(
        "luts.html.j2",
        title=title,
        count=words,
        slope=f"{fit.slope:.4g}",
        intercept=f"{fit.intercept:.4g}",
        r_squared=f"{fit.r_squared:.4f}",
        rms=show("", float(np.sqrt((fit.residuals**2).mean()))),
        plots=[fit_plot(ebops, luts, fit.slope, fit.intercept, words), residual_plot(ebops, fit.residuals.tolist(), words)],
        rows=rows,
    )
    write_atomic(folder / PAGE, page)
    return True


def _row(name: str, ebops: float, luts: float, residual: float) -> list[str]:
    share = f"{100 * residual / luts:+.1f} %" if luts else "-"
    return [name, f"{ebops:,.0f}", f"{luts:,.0f}", f"{luts - residual:,.0f}", f"{residual:+,.0f}", share, f"{ebops / luts:.2f}" if luts else "-"]

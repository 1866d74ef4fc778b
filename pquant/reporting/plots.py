"""Plots as SVG text. They take colours and font from the page, so that they are readable in light and dark mode."""

import io
import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.sax.saxutils import escape

from pquant.reporting.headline import label, metric_names, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Sequence[Mapping[str, Any]]

TEXT, GRID, FIRST, SECOND = "#010101", "#020202", "#030303", "#040404"
SHADES = ("#050505", "#060606", "#070707")
PAINT = {TEXT: "--muted", GRID: "--line", FIRST: "--accent", SECOND: "--second"} | {shade: f"--shade-{i}" for i, shade in enumerate(SHADES)}
"""Colours that stand for variables of the page's style sheet."""

COLOURS = {"--muted": "#555b66", "--line": "#d5d9e0", "--accent": "#1f6feb", "--second": "#c2410c"}
"""Values of those variables outside a page."""

WIDTH, HEIGHT = 4.6, 2.5
INSIDE = (0.19, 0.2, 0.79, 0.75)
"""Left, bottom, width and height of the axes as fractions of a plot, with room for tick labels such as 1,234,567.

A fixed layout is faster than a layout engine, which draws the plot twice.
"""
PIXELS, BAR, LETTER, VALUE_ROOM = 331, 17, 5.6, 56
NAME_LENGTH, FONT_SIZE = 24, 10


class Plot(NamedTuple):
    """A titled SVG; the title is plain text, to be escaped."""

    title: str
    svg: str


def stages(rows: Rows) -> list[str]:
    """Return the stages of a run in the order in which they came."""
    return list(dict.fromkeys(str(row.get("stage", "")) for row in rows))


def curves(rows: Rows) -> list[Plot]:
    """Return a plot by epoch for each metric, the losses, sparsity, EBOPs and their beta, stages shaded; a metric that is always 0 is left out."""
    metrics = dict.fromkeys(name for row in rows for name in metric_names(row, "val"))
    names = dict.fromkeys((*metrics, "loss", "penalty", "distillation", "sparsity", "ebops", "beta"))
    series = {name: _series(rows, name) for name in names}
    return [Plot(label(name), _curve(rows, name, lines)) for name, lines in series.items() if lines]


def layer_bars(layers: Rows) -> list[Plot]:
    """Return the bars of sparsity, of weight bits and of EBOPs by layer; layers without the metric are left out."""
    known = {name: [layer for layer in layers if _number(layer.get(name)) is not None] for name in ("sparsity", "weight_bits", "ebops")}
    known["ebops"] = [layer for layer in known["ebops"] if layer["ebops"] or "params" in layer]
    return [Plot(label(name), _bars(with_it, name)) for name, with_it in known.items() if with_it]


def front_plot(rows: Rows, best: Rows, metric: str, cost: str = "ebops") -> Plot:
    """Return the plot of a metric (``val/<name>``) against a cost: all evaluated epochs as points; a line joins those of the Pareto front."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rows = [row for row in rows if row.get(metric) is not None]
    name, what = metric.partition("/")[2], label(cost.rpartition("/")[2])
    figure, axes = _axes()
    axes.scatter(*_places(rows, metric, cost), s=8, color=GRID, linewidths=0)
    axes.step(*_places(best, metric, cost), where="post", color=FIRST, linewidth=1.2, marker="o", markersize=3.5)
    for row in best[:: max(len(best) // 6, 1)]:
        axes.annotate(str(row["epoch"]), (row[cost], row[metric]), xytext=(3, -9), textcoords="offset points", color=TEXT, fontsize=FONT_SIZE - 3)
    costs = [row[cost] for row in rows]
    if costs and 0 < 10 * min(costs) < max(costs):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick("", value)))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(name, value)))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_xlabel(f"{what} (Pareto-optimal points by epoch)", color=TEXT, fontsize=FONT_SIZE)
    return Plot(f"{label(name)} against {what}", _svg(figure))


def fit_plot(xs: Sequence[float], ys: Sequence[float], slope: float, intercept: float, what: str) -> Plot:
    """Return the plot of ``what`` against EBOPs, with the line slope * EBOPs + intercept."""
    figure, axes = _axes()
    ends = [min(xs), max(xs)]
    axes.plot(ends, [slope * end + intercept for end in ends], color=FIRST, linewidth=1.2)
    axes.scatter(xs, ys, s=14, color=SECOND, linewidths=0, zorder=3)
    return Plot(f"{what} against EBOPs", _against_ebops(figure, axes))


def residual_plot(xs: Sequence[float], residuals: Sequence[float], what: str) -> Plot:
    """Return the plot of residuals against EBOPs, each as a line from 0."""
    figure, axes = _axes()
    axes.axhline(0, color=FIRST, linewidth=1.2)
    axes.vlines(xs, 0, residuals, color=SECOND, linewidth=1.2)
    axes.scatter(xs, residuals, s=14, color=SECOND, linewidths=0, zorder=3)
    return Plot(f"Residuals of {what}", _against_ebops(figure, axes))


def _against_ebops(figure: "Figure", axes: "Axes") -> str:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for axis, ticks in ((axes.xaxis, 4), (axes.yaxis, 5)):
        axis.set_major_locator(MaxNLocator(ticks))
        axis.set_major_formatter(FuncFormatter(lambda value, _: _tick("", value)))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_xlabel("EBOPs", color=TEXT, fontsize=FONT_SIZE)
    return _svg(figure)


def _places(rows: Rows, metric: str, cost: str) -> tuple[list[float], list[float]]:
    return [row[cost] for row in rows], [row[metric] for row in rows]


def standalone(svg: str) -> str:
    """Return a plot for its own file: the page's variables are replaced by colours."""
    for variable, colour in COLOURS.items():
        svg = svg.replace(f"var({variable})", colour)
    return svg


def _series(rows: Rows, name: str) -> dict[str, list[float]]:
    """Return the values by epoch of the keys of ``name`` that have values, NaN for an epoch without one.

    The keys are ``val/name``, ``train/name``, ``name`` and ``target_name``.
    """
    found: dict[str, list[float]] = {}
    for line, key in (("validation", f"val/{name}"), ("training", f"train/{name}"), ("reached", name), ("target", f"target_{name}")):
        values = [_number(row.get(key)) for row in rows]
        if any(values):
            found[line] = [math.nan if value is None else value for value in values]
    return found


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None


def _curve(rows: Rows, name: str, lines: Mapping[str, list[float]]) -> str:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure, axes = _axes()
    epochs = [int(row.get("epoch", position)) for position, row in enumerate(rows, 1)]
    _shade(axes, rows, epochs)
    for (line, values), colour in zip(lines.items(), (FIRST, SECOND), strict=False):
        known = [(epoch, value) for epoch, value in zip(epochs, values, strict=True) if not math.isnan(value)]
        axes.plot(*zip(*known, strict=True), color=colour, linewidth=1.6, label=line, marker="o" if len(known) < 25 else None, markersize=3)
    axes.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(name, value)))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_xlabel("epoch", color=TEXT, fontsize=FONT_SIZE)
    if len(lines) > 1:
        axes.legend(frameon=False, fontsize=FONT_SIZE, labelcolor=TEXT)
    return _svg(figure)


def _tick(name: str, value: float) -> str:
    if name in ("accuracy", "sparsity"):
        return f"{100 * value:.4g} %"
    if abs(value) >= 1e7:
        return f"{value / 1e6:,.5g} M"
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:,.5g}"


def _shade(axes: "Axes", rows: Rows, epochs: Sequence[int]) -> None:
    """Shade the stages, and draw a line where a round of the same stage begins."""
    order, before = stages(rows), ""
    for (stage, _), group in groupby(zip(rows, epochs, strict=True), key=lambda item: (str(item[0].get("stage", "")), item[0].get("round"))):
        span = [epoch for _, epoch in group]
        axes.axvspan(span[0] - 0.5, span[-1] + 0.5, color=SHADES[order.index(stage) % len(SHADES)], linewidth=0)
        if stage == before:
            axes.axvline(span[0] - 0.5, color=TEXT, linewidth=0.7, linestyle=(0, (2, 3)))
        before = stage


def _bars(layers: Rows, name: str) -> str:
    values = [float(layer[name]) for layer in layers]
    names = [_shortened(str(layer.get("name", ""))) for layer in layers]
    left = 8 + LETTER * max(map(len, names))
    scale = (PIXELS - left - VALUE_ROOM) / (1 if name == "sparsity" else max(*values, 1e-9))
    drawn = [f'<text x="{left - 6:.0f}" y="{BAR * row + 13}" text-anchor="end">{escape(text)}</text>' for row, text in enumerate(names)]
    for row, value in enumerate(values):
        drawn.append(f'<rect x="{left:.0f}" y="{BAR * row + 4}" width="{max(scale * value, 0):.1f}" height="11" style="fill: var(--accent)"/>')
        drawn.append(f'<text x="{left + 4 + scale * value:.1f}" y="{BAR * row + 13}">{escape(show(name, value))}</text>')
    return drawing(PIXELS, BAR * len(layers) + 4, "".join(drawn))


def drawing(width: float, height: float, content: str) -> str:
    """Return SVG ``content`` as a complete image, with a plot's font."""
    frame = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
    return f'{frame} style="fill: var(--muted); font-size: {FONT_SIZE}px">{content}</svg>'


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_LENGTH else "…" + name[1 - NAME_LENGTH :].lstrip(".")


def _axes() -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_axes(INSIDE)
    axes.spines[:].set_visible(False)
    axes.tick_params(colors=TEXT, labelsize=FONT_SIZE, length=0)
    return figure, axes


def _svg(figure: "Figure") -> str:
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "pquant"}):
        figure.savefig(text, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    for colour, variable in PAINT.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg[svg.index("<svg") :]

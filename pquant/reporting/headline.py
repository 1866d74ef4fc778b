"""The metrics that summarize a run, as text; the console and the report show the same."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class HeadlineMetric:
    """One metric of a run as text: its label, its value, and what to compare it with."""

    label: str
    value: str
    note: str = ""


def headline(summary: Mapping[str, Any]) -> list[HeadlineMetric]:
    """Return the main metrics of ``summary.json``; those that are missing or None are left out."""
    metrics = [HeadlineMetric(label(name), show(name, summary[f"test/{name}"]), _baseline(summary, name)) for name in metric_names(summary, "test")]
    notes = {
        "sparsity": "of the prunable weights",
        "nonzero_params": f"of {show('params', summary.get('params'))}{_quantized(summary)}",
        "weight_bits": "mean of the non-zero weights",
        "ebops": f"of {show('ebops', target)}" if (target := summary.get("target_ebops")) else "",
        "coverage/multiplications": _coverage(summary),
        "size_bytes": "all non-zero parameters, no index",
        "wall_seconds": _epochs(summary),
    }
    return metrics + [HeadlineMetric(label(name), show(name, summary[name]), note) for name, note in notes.items() if summary.get(name) is not None]


def metric_names(row: Mapping[str, Any], part: str) -> list[str]:
    """Return the names of all numbers ``part/<name>`` but the loss: the metrics of the task."""
    names = [key.removeprefix(f"{part}/") for key, value in row.items() if key.startswith(f"{part}/") and isinstance(value, (int, float))]
    return [name for name in names if name != "loss"]


def label(name: str) -> str:
    """Return the label of the metric ``name``."""
    return _LABELS.get(name, name[:1].upper() + name[1:].replace("_", " "))


def show(name: str, value: Any) -> str:
    """Return a value as text, in the unit of the metric ``name``: per cent, bytes, a duration, a count, or four digits; "-" for no number."""
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        return "-"
    return _FORMATS.get(name.rpartition("/")[2], _digits)(value)


def _baseline(summary: Mapping[str, Any], name: str) -> str:
    baseline, reached = summary.get(f"float/{name}"), summary[f"test/{name}"]
    if baseline is None:
        return ""
    difference = f", {100 * (reached - baseline):+.2f} points" if name == "accuracy" else ""
    return f"float baseline {show(name, baseline)}{difference}"


def _epochs(summary: Mapping[str, Any]) -> str:
    """Return as text how many epochs were trained, how many were planned, and the epoch of the model, if it is not the last."""
    planned, selected = (show("epochs", summary[name]) if name in summary else "" for name in ("planned_epochs", "selected_epoch"))
    of = f" of {planned}" if planned and summary["planned_epochs"] != summary.get("epochs") else ""
    noun = "epoch" if summary.get("planned_epochs", summary.get("epochs")) == 1 else "epochs"
    return f"{show('epochs', summary.get('epochs'))}{of} {noun}{f', the model is that of epoch {selected}' if selected else ''}"


def _coverage(summary: Mapping[str, Any]) -> str:
    parameters, activations = (show("share", summary.get(f"coverage/{share}")) for share in ("parameters", "activations"))
    return f"of the multiplications; {parameters} of the parameters, {activations} of the activations"


def _quantized(summary: Mapping[str, Any]) -> str:
    """Return as text the fraction of the parameters that is quantized, or "" if all are."""
    share = summary.get("coverage/parameters")
    return f", {show('share', share)} of them quantized" if share is not None and share < 1 else ""


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _bits(value: float) -> str:
    return f"{value:.3g}"


def _digits(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:#.4g}".removesuffix(".")


def _beta(value: float) -> str:
    return f"{value:.2e}"


def _size(value: float) -> str:
    return f"{value:.0f} B" if value < 1000 else f"{value / 1000:.1f} kB" if value < 1e6 else f"{value / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """Return a time in seconds as text."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


_LABELS = {
    "params": "Parameters",
    "nonzero_params": "Parameters left",
    "ebops": "EBOPs",
    "beta": "Beta of EBOPs",
    "size_bytes": "Size",
    "wall_seconds": "Time",
}
_LABELS |= {"coverage/multiplications": "Quantized"}
_LABELS |= {"luts_estimated": "LUTs (estimated)", "luts_yosys": "LUTs (Yosys)"}
_LABELS |= {"carries_yosys": "Carry blocks (Yosys)", "delay_ns_estimated": "Delay in ns (estimated)"}
_FORMATS: dict[str, Callable[[float], str]] = {
    **dict.fromkeys(("accuracy", "sparsity", "mask_sparsity", "multiplications", "share"), _percent),
    **dict.fromkeys(("weight_bits", "input_bits", "output_bits"), _bits),
    **dict.fromkeys(("params", "nonzero", "nonzero_params", "ebops", "target_ebops", "epochs", "planned_epochs", "selected_epoch"), _count),
    **dict.fromkeys(("seconds", "wall_seconds"), duration),
    "size_bytes": _size,
    "beta": _beta,
}

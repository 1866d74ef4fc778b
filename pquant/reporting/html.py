"""The report of a run: one self-contained page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pquant.reporting.confusion import confused_pairs, confusion_cells
from pquant.reporting.headline import headline, label, metric_names, show
from pquant.reporting.plots import Plot, Rows, curves, front_plot, layer_bars, stages
from pquant.reporting.resources import resource_table
from pquant.reporting.weights import Weights, histogram_plots
from pquant.tracking.files import plain, write_atomic

SECTIONS = ("data", "model", "pruning", "quantization")
COLUMNS = ("params", "nonzero", "sparsity", "weight_bits", "input_bits", "output_bits", "ebops")
EXPORTS = {"rtl": "RTL", "onnx": "ONNX", "hls4ml": "hls4ml"}


@dataclass(frozen=True)
class Details:
    """Contents of a report in addition to the metrics.

    They are weight histograms, the confusion matrix of the test set (None for a regression), the names of its classes, if any, and the epochs in the
    Pareto archive.
    """

    weights: Sequence[Weights] = ()
    confusion: Sequence[Sequence[int]] | None = None
    archived: Sequence[int] = ()
    classes: Sequence[str] = ()


def write_report(
    folder: Path,
    summary: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
    config: Mapping[str, Any],
    command: str,
    details: Details = Details(),
) -> Path:
    """Write ``report.html`` into the run's folder and return its path.

    Args:
        folder: the run's folder.
        summary: the metrics of ``summary.json``.
        rows: the epochs, as in ``metrics.csv``.
        layers: one row per layer, see :func:`pquant.layer_table`.
        config: the composed configuration, plain values.
        command: the command that started the run.
        details: the other contents.
    """
    summary, rows, layers = plain(summary), plain(list(rows)), plain(list(layers))
    confusion = [list(row) for row in details.confusion or ()]
    page = render(
        "report.html.j2",
        folder=folder.name,
        title=_title(summary),
        parts=_parts(config),
        metrics=headline(summary),
        stages=stages(rows),
        curves=curves(rows),
        fronts=_front(rows, details.archived),
        bars=layer_bars(layers),
        histograms=histogram_plots(list(details.weights)),
        confusion=confusion_cells(confusion),
        confused=confused_pairs(confusion),
        classes=list(details.classes) or [str(number) for number in range(len(confusion))],
        exports=_exports(summary),
        resources=resource_table(folder) if "rtl/luts_estimated" in summary else [],
        columns={name: label(name) for name in COLUMNS},
        layers=[_layer(layer) for layer in layers],
        command=command,
        config=_yaml(config),
        environment={name: value for name, value in summary.items() if _is_environment(name)},
        measured={name: value for name, value in summary.items() if not _is_environment(name)},
    )
    path = folder / "report.html"
    write_atomic(path, page)
    return path


def render(template: str, **values: Any) -> str:
    """Return a template of this folder filled in; every value is escaped except those that the template marks as safe."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    return (
        Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
        .get_template(template)
        .render(values)
    )


def _title(summary: Mapping[str, Any]) -> str:
    parts = [f"{show(name, summary[f'test/{name}'])} {name}" for name in metric_names(summary, "test")[:1]]
    parts += [
        f"{show(name, summary[name])} {words}" for name, words in (("sparsity", "sparse"), ("weight_bits", "bits per weight")) if summary.get(name)
    ]
    return ", ".join(phrase.replace(" ", "\u00a0") for phrase in parts) or "A run of pquant"


def _is_environment(name: str) -> bool:
    return name.startswith("version/") or name in ("seed", "config_hash", "git_commit", "platform", "cpu", "cores")


def _parts(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the class of each of the main sections."""
    chosen = [(name, config[name]) for name in SECTIONS if isinstance(config.get(name), Mapping)]
    return [(name, str(section["_target_"]).rpartition(".")[2]) for name, section in chosen if "_target_" in section]


def _layer(layer: Mapping[str, Any]) -> dict[str, str]:
    cells = {name: "float" if name.endswith("_bits") and layer[name] is None else show(name, layer[name]) for name in COLUMNS if name in layer}
    return {
        "name": str(layer.get("name", "")),
        "type": str(layer.get("type", "")),
        "shape": " × ".join(map(str, layer.get("shape") or [])),
        **cells,
    }


def _front(rows: Rows, archived: Sequence[int]) -> list[Plot]:
    """Return the plot of the Pareto archive, if the run has one."""
    kept = [row for row in rows if row.get("epoch") in archived]
    return [front_plot(rows, kept, f"val/{metric_names(kept[0], 'val')[0]}")] if kept else []


def _exports(summary: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return the metrics of the exports as text, by target."""
    found: dict[str, dict[str, str]] = {}
    for name, value in summary.items():
        target, _, metric = name.partition("/")
        if target in EXPORTS and value is not None:
            found.setdefault(EXPORTS[target], {})[label(metric)] = _text(metric, value)
    return found


def _text(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return show(name, value) if isinstance(value, (int, float)) else str(value)


def _yaml(config: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(plain(config), sort_keys=False, allow_unicode=True)

"""A run's whole Pareto archive exported: a front of accuracy against what the hardware of each model costs."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pquant.errors import ConfigError
from pquant.finetuning.objectives import METRICS
from pquant.pareto import front
from pquant.reporting.plots import front_plot, standalone
from pquant.tracking.files import MetricsCsv, write_atomic
from pquant.training.archive import archived_epochs

if TYPE_CHECKING:
    from pquant.experiment import Experiment, Run

COSTS = ("rtl/luts_yosys", "rtl/luts_estimated", "ebops")


def export_front(experiment: "Experiment", run: "Run") -> dict[str, Any]:
    """Export the model of each epoch of the archive of ``experiment.from_run`` into ``epoch_<n>`` and return the summary of the last.

    ``front.csv`` gets the figures of all, ``front.svg`` the validation metric against LUTs (counted where all were, else estimated; EBOPs without).

    Raises:
        ConfigError: a run without an archive.
    """
    source = Path(str(experiment.from_run))
    epochs = archived_epochs(source)
    if not epochs:
        raise ConfigError(f"from_epoch=all needs a run with a Pareto archive (training.pareto=true), '{source}' has none")
    summaries = []
    for epoch in epochs:
        folder = run.folder / f"epoch_{epoch:04}"
        folder.mkdir(parents=True, exist_ok=True)
        one = dataclasses.replace(experiment, from_epoch=epoch)
        summaries.append({"epoch": epoch} | one.run(dataclasses.replace(run, folder=folder)))
    write_front(run.folder, summaries)
    return summaries[-1]


def write_front(folder: Path, summaries: list[dict[str, Any]]) -> None:
    """Write ``front.csv`` and ``front.svg`` from the summaries of models, each with its ``epoch``."""
    metric = next(name for name in METRICS if f"val/{name}" in summaries[0])
    cost = next(name for name in COSTS if all(name in summary for summary in summaries))
    figures = ("epoch", f"val/{metric}", f"test/{metric}", "ebops", "sparsity")
    kept = [name for name in summaries[0] if name in figures or name.partition("/")[0] in ("rtl", "onnx", "hls4ml")]
    MetricsCsv(folder / "front.csv").rewrite({name: summary.get(name, "") for name in kept} for summary in summaries)
    places = [(summary[cost], summary[f"val/{metric}"]) for summary in summaries]
    best = [summaries[index] for index in front(places, "minimize", METRICS[metric])]  # type: ignore[arg-type]
    write_atomic(folder / "front.svg", standalone(front_plot(summaries, best, f"val/{metric}", cost).svg))

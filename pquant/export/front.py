"""The Pareto front of an exported archive: the validation metric against the hardware cost of each model."""

import logging
from pathlib import Path
from typing import Any

from pquant.finetuning.objectives import METRICS
from pquant.pareto import front
from pquant.reporting.luts import FEWEST, write_luts
from pquant.reporting.plots import front_plot, standalone
from pquant.tracking.files import MetricsCsv, write_atomic

log = logging.getLogger(__name__)

COSTS = ("rtl/luts_yosys", "rtl/luts_estimated", "ebops")


def write_front(folder: Path, summaries: list[dict[str, Any]]) -> None:
    """Write ``front.csv`` and ``front.svg`` from summaries of models, each with its ``epoch``; with 3 or more Verilog exports also ``luts.html``."""
    metric = next(name for name in METRICS if f"val/{name}" in summaries[0])
    cost = next(name for name in COSTS if all(name in summary for summary in summaries))
    columns = ("epoch", f"val/{metric}", f"test/{metric}", "ebops", "sparsity")
    kept = [name for name in summaries[0] if name in columns or name.partition("/")[0] in ("rtl", "onnx", "hls4ml")]
    MetricsCsv(folder / "front.csv").rewrite({name: summary.get(name, "") for name in kept} for summary in summaries)
    places = [(summary[cost], summary[f"val/{metric}"]) for summary in summaries]
    best = [summaries[index] for index in front(places, "minimize", METRICS[metric])]  # type: ignore[arg-type]
    write_atomic(folder / "front.svg", standalone(front_plot(summaries, best, f"val/{metric}", cost).svg))
    written = write_luts(folder, f"Pareto archive in {folder.name}", {f"epoch {summary['epoch']}": summary for summary in summaries})
    if not written and "rtl/luts_estimated" in kept:
        log.info("no luts.html: a fit of LUTs to EBOPs needs %d exports that differ in EBOPs", FEWEST)

"""The panels of a Weights & Biases run in addition to its curves: report, layers, histograms of weights, bits and masks, and files."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pquant.tracking.tracker import artifacts

if TYPE_CHECKING:
    from wandb import Run

COLUMNS = ("name", "type", "sparsity", "weight_bits", "input_bits", "output_bits", "ebops")
BARS = ("sparsity", "weight_bits", "ebops")


def log_panels(run: "Run", folder: Path) -> None:
    """Log the files that a run left in its folder: each becomes a panel or part of an artifact of type "run"."""
    with copies_in(folder / "wandb"):
        _log_panels(run, folder)


@contextmanager
def copies_in(folder: Path) -> Iterator[None]:
    """Let W&B copy the files of artifacts below ``folder``, until it has uploaded them; ``$WANDB_DATA_DIR`` overrides it."""
    if os.environ.get("WANDB_DATA_DIR"):
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]


def _log_panels(run: "Run", folder: Path) -> None:
    import wandb

    panels: dict[str, Any] = {}
    if (folder / "report.html").is_file():
        panels["report"] = wandb.Html((folder / "report.html").read_text(encoding="utf-8"), inject=False)
    if (folder / "model.json").is_file():
        layers = json.loads((folder / "model.json").read_text(encoding="utf-8"))["layers"]
        table = wandb.Table(list(COLUMNS), [[layer.get(name) for name in COLUMNS] for layer in layers])
        panels |= {"layers/table": table, **{f"layers/{name}": wandb.plot.bar(table, "name", name, title=name) for name in BARS}}
        for name, values in histograms(folder, layers):
            panels[name] = wandb.Histogram(values)
    run.log(panels)
    artifact = wandb.Artifact(f"run-{run.id}", type="run")
    for path in artifacts(folder):
        artifact.add_file(str(path))
    run.log_artifact(artifact)


def histograms(folder: Path, layers: list[dict[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield, for each layer with weights, the values of ``weights/<layer>``, ``bits/<layer>`` (the total width of each weight with its own
    bits) and ``masks/<layer>`` (the fraction of non-zero weights of each output).
    """
    import numpy as np
    from safetensors.numpy import load_file

    weights = load_file(folder / "model.safetensors")
    for layer in layers:
        name = layer["name"]
        weight = weights.get(f"{name}.weight" if name else "weight")
        if weight is None or "nonzero" not in layer:
            continue
        yield f"weights/{name}", weight.ravel()
        yield f"masks/{name}", (weight != 0).reshape(len(weight), -1).mean(1)
        format_ = layer["quantizers"].get("weight_quantizer")
        if format_:
            widths = sum(np.asarray(format_[part], dtype=float) for part in "kif")
            yield f"bits/{name}", np.broadcast_to(widths, weight.shape).ravel()

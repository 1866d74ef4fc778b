"""Draw the README's picture from a run's folder: ``python docs/picture.py outputs/readme``."""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SHADES = {"pretrain": "#e8eef7", "train": "#ffffff", "finetune": "#eef7e8"}


def main(folder: Path) -> None:
    """Write docs/images/run.svg."""
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    epochs = [int(row["epoch"]) for row in rows]
    figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained")
    for axis, (title, names) in zip(
        axes, {"loss": ["train/loss", "val/loss"], "accuracy": ["val/accuracy"], "sparsity": ["sparsity"]}.items(), strict=True
    ):
        for stage, shade in SHADES.items():
            inside = [epoch for epoch, row in zip(epochs, rows, strict=True) if row["stage"] == stage]
            if inside:
                axis.axvspan(min(inside) - 0.5, max(inside) + 0.5, color=shade, zorder=0)
        for name in names:
            axis.plot(epochs, [float(row[name]) for row in rows], label=name)
        axis.set(title=title, xlabel="epoch", xlim=(0.5, len(epochs) + 0.5))
        if len(names) > 1:
            axis.set_yscale("log")
            axis.legend(frameon=False)
    plt.rcParams["svg.hashsalt"] = "pquant"
    figure.savefig(Path(__file__).parent / "images" / "run.svg", metadata={"Date": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""The Pareto archive of a run: the models of all epochs that are Pareto-optimal in validation metric and EBOPs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from pquant.errors import ConfigError
from pquant.pareto import front
from pquant.reporting.plots import front_plot, standalone
from pquant.tracking.files import MetricsCsv, write_atomic
from pquant.training.checkpoint import load_checkpoint, save_checkpoint
from pquant.training.task import Task

COLUMNS = ("epoch", "stage", "ebops", "sparsity")


class ParetoArchive:
    """Keeps ``pareto/epoch_<n>.pt`` for the Pareto-optimal epochs, and writes ``pareto.csv`` and ``pareto.svg`` into the folder of the run.

    The Pareto front is computed from the rows of all epochs, so that a resumed run continues with the same front.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.folder, self.metric = folder, f"val/{task.metric}"
        self.better = "maximize" if task.higher_is_better else "minimize"

    def update(self, rows: Sequence[Mapping[str, Any]], model: nn.Module) -> None:
        """Add ``model``, the model of the last of ``rows``, if it is Pareto-optimal, and delete the models that no longer are.

        Call it after the checkpoint of the epoch is written. Epochs that were not evaluated are not part of the front.
        """
        rows = [row for row in rows if row.get(self.metric) is not None]
        best = [rows[index] for index in front([(row["ebops"], row[self.metric]) for row in rows], "minimize", self.better)]  # type: ignore[arg-type]
        (self.folder / "pareto").mkdir(exist_ok=True)
        newest = rows[-1]
        if newest in best and not archived(self.folder, newest["epoch"]).exists():
            save_checkpoint(archived(self.folder, newest["epoch"]), {"epoch": newest["epoch"], "model": model.state_dict()})
        kept = {archived(self.folder, row["epoch"]) for row in best}
        for file in (self.folder / "pareto").glob("epoch_*.pt"):
            if file not in kept:
                file.unlink()
        there = [row for row in best if archived(self.folder, row["epoch"]).exists()]
        MetricsCsv(self.folder / "pareto.csv").rewrite({name: row[name] for name in (*COLUMNS, self.metric)} for row in there)
        write_atomic(self.folder / "pareto.svg", standalone(front_plot(rows, there, self.metric).svg))


def archived(folder: Path, epoch: int) -> Path:
    """Return the path of the model after ``epoch`` in the folder of a run."""
    return folder / "pareto" / f"epoch_{epoch:04}.pt"


def archived_epochs(folder: Path) -> list[int]:
    """Return the epochs whose models are in the Pareto archive of a run's folder."""
    return [int(path.stem.partition("_")[2]) for path in sorted(folder.glob("pareto/epoch_*.pt"))]


def load_archived(folder: Path, epoch: int) -> dict[str, Any]:
    """Return the state of the model after ``epoch``.

    Raises:
        ConfigError: the archive does not contain the epoch; the message lists the epochs that it contains.
    """
    file = archived(folder, epoch)
    if not file.is_file():
        there = archived_epochs(folder) or "none"
        raise ConfigError(f"from_epoch must be 'all' or an epoch of the run's Pareto archive, got {epoch}; {folder} has {there}")
    return load_checkpoint(file)["model"]

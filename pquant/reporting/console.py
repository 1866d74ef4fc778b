"""The progress display of a run: a live bar on a terminal, a few lines elsewhere, nothing if ``progress`` is "quiet"."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from rich import console, progress

from pquant.reporting.headline import headline, metric_names, show

LINES = 15
"""Lines for the epochs of a long run, in addition to those of its first and last epoch and of each stage."""

Verbosity = Literal["auto", "plain", "quiet"]


class Console:
    """The progress of one run as text on the standard output.

    ``progress`` is "auto" (a live bar on a terminal, else plain), "plain" (about twenty lines, however long the run) or "quiet" (nothing).
    """

    def __init__(self, progress: Verbosity = "auto") -> None:
        self._out = console.Console(quiet=progress == "quiet", highlight=False, markup=False, emoji=False, soft_wrap=True)
        live = progress == "auto" and self._out.is_terminal and not self._out.is_dumb_terminal
        self._epochs: _Epochs = _Bar(self._out) if live else _Lines(self._out)

    def start(self, total_epochs: int) -> None:
        """Begin to show a training of ``total_epochs`` epochs."""
        self._epochs.start(total_epochs)

    def epoch(self, row: Mapping[str, Any]) -> None:
        """Show one epoch; ``row`` has ``stage`` and ``epoch`` (from 1), and the metrics of ``metrics.csv``."""
        self._epochs.show(row)

    def note(self, text: str) -> None:
        """Print one line of text."""
        self._out.print(text)

    def finish(self) -> None:
        """End the display of training, also when it was interrupted."""
        self._epochs.finish()

    def summary(self, metrics: Mapping[str, Any], folder: Path) -> None:
        """Print the main metrics of a run, and its folder."""
        shown = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        self.note("")
        for metric in headline(metrics):
            self.note(f"{metric.label:<16} {metric.value:<13} {metric.note}".rstrip())
        self.note(f"{'Files':<16} {shown}")


class _Epochs(Protocol):
    """The display of the epochs of a training."""

    def start(self, total: int) -> None: ...

    def show(self, row: Mapping[str, Any]) -> None: ...

    def finish(self) -> None: ...


class _Lines:
    """Prints a line for the first and last epoch, each change of stage, and every k-th epoch, or the next epoch after it that was evaluated."""

    def __init__(self, out: console.Console) -> None:
        self.out, self.total, self.stage, self.part = out, 0, "", 0
        self.unseen: Mapping[str, Any] | None = None

    def start(self, total: int) -> None:
        self.total, self.stage, self.part = total, "", 0

    def show(self, row: Mapping[str, Any]) -> None:
        number, every, evaluated = row["epoch"], math.ceil(self.total / LINES) or 1, "ebops" in row
        shown = row["stage"] != self.stage or number == self.total or evaluated and number // every > self.part
        self.unseen = None if shown else row
        if shown:
            self._print(row)
        self.part = number // every if evaluated else self.part
        self.stage = row["stage"]

    def finish(self) -> None:
        if self.unseen is not None:
            self._print(self.unseen)
        self.unseen = None

    def _print(self, row: Mapping[str, Any]) -> None:
        self.out.print(f"epoch {row['epoch']:>{len(str(self.total))}}/{self.total}  {row['stage']:<8}  {_facts(row)}")


class _Bar:
    """A bar with the stage, the epoch, its metrics and the remaining time."""

    def __init__(self, out: console.Console) -> None:
        columns = (
            progress.TextColumn("{task.description:<8}", markup=False),
            progress.BarColumn(bar_width=None),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[facts]}", markup=False),
            progress.TimeRemainingColumn(compact=True),
        )
        self.progress = progress.Progress(*columns, console=out, expand=True, speed_estimate_period=3600)

    def start(self, total: int) -> None:
        self.task, self.facts = self.progress.add_task("", total=total, facts=""), ""
        self.progress.start()

    def show(self, row: Mapping[str, Any]) -> None:
        self.facts = _facts(row) if "ebops" in row or not self.facts else self.facts
        self.progress.update(self.task, completed=row["epoch"], description=row["stage"], facts=self.facts)

    def finish(self) -> None:
        self.progress.stop()


def _facts(row: Mapping[str, Any]) -> str:
    names = {"loss": "train/loss"} | {name: f"val/{name}" for name in metric_names(row, "val")[:1]} | {"sparsity": "sparsity", "EBOPs": "ebops"}
    names |= {"target": "target_ebops", "beta": "beta"}
    return "  ".join(f"{name} {show(key, row[key]):>7}" for name, key in names.items() if key in row)

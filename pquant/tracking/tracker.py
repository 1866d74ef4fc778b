"""The tracker interface, and the tracker that does nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pquant.settings import Settings, schema

ARTIFACTS = ("report.html", "summary.json", "metrics.csv", "model.safetensors", "model.json")


def artifacts(folder: Path) -> list[Path]:
    """Return the files of a run's folder that trackers store in addition to the metrics."""
    return [folder / name for name in ARTIFACTS if (folder / name).is_file()]


class Tracker(Protocol):
    """Logs one run at a time: ``start``, then ``log`` after every epoch, ``summary`` at the end, and ``finish`` in every case."""

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Start a run with its files in ``folder``; ``config`` is the composed configuration as plain values."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Log the metrics of one epoch; ``row["epoch"]`` is its number over the whole run, from 1."""
        ...

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Log the final metrics of the run; its report and model are in the folder already."""
        ...

    def finish(self, status: str) -> None:
        """End the run: ``"finished"``, ``"failed"`` or ``"interrupted"``."""
        ...


@schema("tracker", "none")
@dataclass(frozen=True)
class NoTracker(Settings):
    """No tracker: a run leaves only the files in its folder."""

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Do nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def summary(self, metrics: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""

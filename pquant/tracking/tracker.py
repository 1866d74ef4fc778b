"""What a tracker is, and the one that tracks nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pquant.settings import Settings, schema

ARTIFACTS = ("report.html", "summary.json", "metrics.csv", "model.safetensors", "model.json")


def artifacts(folder: Path) -> list[Path]:
    """Return the files of a run's folder that are worth keeping beside its figures."""
    return [folder / name for name in ARTIFACTS if (folder / name).is_file()]


class Tracker(Protocol):
    """Follows one run at a time: ``start``, then ``log`` after every epoch, ``summary`` at the end, and ``finish`` in any case."""

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Begin a run that keeps its files under ``folder``; ``config`` is the composed configuration as plain values."""
        ...

    def log(self, row: Mapping[str, Any]) -> None:
        """Take the figures of one epoch; ``row["epoch"]`` is its number over the whole run, from 1."""
        ...

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Take the final figures of the run; its report and model lie in the folder by then."""
        ...

    def finish(self, status: str) -> None:
        """End the run: ``"finished"``, ``"failed"`` or ``"interrupted"``."""
        ...


@schema("tracker", "none")
@dataclass(frozen=True)
class NoTracker(Settings):
    """Nothing beyond the files that every run leaves in its folder."""

    def start(self, folder: Path, config: dict[str, Any]) -> None:
        """Do nothing."""

    def log(self, row: Mapping[str, Any]) -> None:
        """Do nothing."""

    def summary(self, figures: Mapping[str, Any]) -> None:
        """Do nothing."""

    def finish(self, status: str) -> None:
        """Do nothing."""

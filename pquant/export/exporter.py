"""What an exporter is, and the one that exports nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pquant.data.splits import Splits
from pquant.settings import Settings, schema


class Exporter(Protocol):
    """Turns a finalized model into files."""

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError where a compressed model, before training, is none that can be exported, or a tool is missing."""
        ...

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write the files under ``folder`` and return figures for the summary."""
        ...


@schema("export", "none")
@dataclass(frozen=True)
class NoExport(Settings):
    """Nothing beyond the weights that every run leaves."""

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Take any model."""

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Return no figures."""
        return {}

"""What an exporter is, and the one that exports nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pquant.data.splits import Splits
from pquant.settings import Settings, schema


class Exporter(Protocol):
    """Turns a finalized model into files."""

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write the files under ``folder`` and return figures for the summary."""
        ...


@schema("export", "none")
@dataclass(frozen=True)
class NoExport(Settings):
    """Nothing beyond the weights that every run leaves."""

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Return no figures."""
        return {}

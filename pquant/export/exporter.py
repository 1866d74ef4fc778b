"""The exporter interface, the common settings of exporters to hardware, and the exporter that does nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from pquant.data.splits import Splits
from pquant.settings import Settings, schema


class Exporter(Protocol):
    """Turns a finalized model into files."""

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a tool is missing."""
        ...

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write the files under ``folder`` and return metrics for the summary."""
        ...


@dataclass(frozen=True)
class HardwareExport(Settings):
    """The common settings of exporters to hardware.

    Args:
        raw_inputs: whether the exported network takes raw inputs: its first layer subtracts the offsets of the data and divides by the scales, which
            must be powers of two (``data.standardize=power_of_two``).
    """

    raw_inputs: bool = False


@schema("export", "none")
@dataclass(frozen=True)
class NoExport(Settings):
    """No export: a run leaves only its finalized weights."""

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Accept any model."""

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Return no metrics."""
        return {}

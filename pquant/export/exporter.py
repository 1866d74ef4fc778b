"""The exporter interface, the common settings of exporters to hardware, and the exporter that does nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import nn

from pquant.data.splits import Splits
from pquant.export.constant import check_outputs
from pquant.export.graph import Graph
from pquant.export.integers import Verified, verify, write_integers
from pquant.export.raw_inputs import deployed
from pquant.export.replay import input_format
from pquant.export.vectors import test_vectors
from pquant.settings import Settings, schema


class Exporter(Protocol):
    """Turns a finalized model into files."""

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a tool is missing."""
        ...

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write the files under ``folder`` and return metrics for the summary."""
        ...


class VerifiedModel(NamedTuple):
    """A finalized model whose integer model gives the same outputs on ``vectors``. Model and splits take raw inputs if the export does."""

    model: nn.Module
    splits: Splits
    graph: Graph
    vectors: np.ndarray
    verified: Verified


@dataclass(frozen=True)
class HardwareExport(Settings):
    """Base class of exporters to hardware, which compare a finalized model with its integer model first. A subclass gives ``vectors`` a default.

    Args:
        vectors: number of inputs on which models are compared.
        raw_inputs: whether the exported network takes raw inputs: its first layer subtracts the offsets of the data and divides by the scales, which
            must be powers of two (``data.standardize=power_of_two``).
    """

    vectors: int
    raw_inputs: bool = False

    def checked_graph(self, model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        """Return the graph of a model, after checking that it can be exported with the installed tools.

        Raises:
            ConfigError: it cannot.
        """
        raise NotImplementedError

    def verified_model(self, model: nn.Module, splits: Splits, folder: Path) -> VerifiedModel:
        """Verify a finalized model, and write ``integers.*`` into ``folder``, which is created.

        Raises:
            ConfigError: a model that cannot be exported, or whose output ignores its input.
            ExportError: the integer model gives other outputs than the model.
        """
        model, splits = deployed(model, splits, self.raw_inputs)
        graph = self.checked_graph(model, tuple(splits.input_shape))
        vectors = test_vectors(splits.test, input_format(graph), self.vectors)
        verified = verify(model, graph, vectors)
        check_outputs(graph, verified, splits.classes)
        folder.mkdir(parents=True, exist_ok=True)
        write_integers(graph, verified, folder, splits.described)
        return VerifiedModel(model, splits, graph, vectors, verified)


@schema("export", "none")
@dataclass(frozen=True)
class NoExport(Settings):
    """No export: a run leaves only its finalized weights."""

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Accept any model."""

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Return no metrics."""
        return {}

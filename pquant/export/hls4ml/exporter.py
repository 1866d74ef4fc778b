"""An hls4ml project: HLS C++ of a dense network, compiled with g++ and compared with the model."""

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from pquant.data.splits import Splits
from pquant.errors import ConfigError, ExportError
from pquant.export.check import ALL_MODES, checked
from pquant.export.graph import Graph
from pquant.export.hls4ml.layout import Order
from pquant.export.hls4ml.lower import lower
from pquant.export.hls4ml.project import Target
from pquant.export.integers import verify, write_integers
from pquant.export.recording import record
from pquant.export.replay import input_format
from pquant.export.vectors import test_vectors
from pquant.layers.finalize import finalize
from pquant.settings import Settings, schema, setting

SKIPPED = ["fuse_batch_normalization", "fuse_consecutive_batch_normalization", "merge_linear_activation", "eliminate_linear_activation"]
MODES = ALL_MODES - {"WRAP_SM"}


@schema("export", "hls4ml")
@dataclass(frozen=True)
class HLS4ML(Settings):
    """A project for dense networks with ReLU, one format per tensor: each layer has the exact precision of its sum, each quantizer is a cast.

    Args:
        backend: hls4ml's name of the HLS tool that the project is for; none is run.
        part: the FPGA.
        clock_period: ns.
        vectors: how many inputs the model, its integers and the compiled C++ are compared on.
    """

    backend: Literal["Vitis", "Vivado", "Quartus", "Catapult", "oneAPI", "Libero"] = "Vitis"
    part: str = "xcvu13p-flga2577-2-e"
    clock_period: float = setting(5.0, gt=0)
    io_type: Literal["parallel", "stream"] = "parallel"
    strategy: Literal["latency", "resource", "distributed_arithmetic"] = "latency"
    reuse_factor: int = setting(1, ge=1)
    vectors: int = setting(1000, ge=64)

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a tool is missing."""
        if importlib.util.find_spec("hls4ml") is None:
            raise ConfigError("export=hls4ml needs hls4ml: pip install 'pquant[hls4ml]'")
        if shutil.which("g++") is None:
            raise ConfigError("export=hls4ml compares with the compiled C++ and needs g++ on the PATH")
        checked(model, input_shape, MODES)
        lower(record(finalize(model), input_shape), self._target())

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write ``export/hls4ml`` and ``export/integers.*`` under ``folder`` and return ``hls4ml/...`` metrics.

        Raises:
            ConfigError: a model that cannot be exported.
            ExportError: the compiled project gives other values than the model.
        """
        self.check(model, tuple(splits.input_shape))
        graph = checked(model, tuple(splits.input_shape), MODES)
        verified = verify(model, graph, test_vectors(splits.test, input_format(graph), self.vectors))
        target = folder / "export" / "hls4ml"
        target.mkdir(parents=True, exist_ok=True)
        write_integers(graph, verified, target.parent)
        project, order = self._project(graph, target)
        project.compile()
        given = np.ldexp(verified.inputs.astype(np.float64), -verified.input_f).astype(np.float32).reshape(verified.count, -1)[:, order.ravel()]
        expected = np.ldexp(verified.outputs.astype(np.float64), -verified.output_f)
        seen = project.predict(np.ascontiguousarray(given)).reshape(expected.shape)
        if not np.array_equal(seen, expected):
            vector, place = (int(at) for at in np.argwhere(seen != expected)[0])
            raise ExportError(
                f"hls4ml's project and the model differ at output {place}, vector {vector}: the C++ gives {seen[vector, place]:.10g}, "
                f"the model {expected[vector, place]:.10g}"
            )
        return {"hls4ml/vectors": verified.count, "hls4ml/bit_exact": True}

    def _target(self) -> Target:
        return Target(self.backend, self.io_type == "stream")

    def _project(self, graph: Graph, target: Path) -> tuple[Any, Order]:
        from hls4ml.model.graph import ModelGraph

        project, given, output = lower(graph, self._target())
        config = {
            "OutputDir": str(target),
            "ProjectName": "net",
            "Backend": self.backend,
            "Part": self.part,
            "ClockPeriod": self.clock_period,
            "IOType": f"io_{self.io_type}",
            "HLSConfig": {
                "Model": {"Precision": {"default": "fixed<32,16>"}, "ReuseFactor": self.reuse_factor, "Strategy": self.strategy, "BitExact": False},
                "LayerName": {name: {"Precision": types, "Trace": False} for name, types in project.types.items()},
                "SkipOptimizers": SKIPPED,
            },
        }
        return ModelGraph.from_layer_list(config, project.layers, outputs=[output.layer]), given.order

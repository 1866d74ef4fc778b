"""ONNX: with standard operators, with QONNX's Quant nodes, and with QuantizeLinear if that rounds the same way."""

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import nn

from pquant.data.splits import Splits
from pquant.errors import ConfigError, ExportError
from pquant.export.check import ALL_MODES, checked
from pquant.export.exporter import HardwareExport
from pquant.export.graph import Graph
from pquant.export.integers import first_difference
from pquant.export.onnx.check import check_dialect
from pquant.export.recording import record
from pquant.installation import extra
from pquant.layers.finalize import finalize
from pquant.settings import schema, setting
from pquant.tracking.files import write_atomic

if TYPE_CHECKING:
    from pquant.export.onnx.graph import PlainGraph

log = logging.getLogger(__name__)

MODES = ALL_MODES - {"WRAP_SM"}
Dialect = Literal["exact", "hls4ml", "finn"]


@schema("export", "onnx")
@dataclass(frozen=True)
class ONNX(HardwareExport):
    """ONNX files whose outputs equal the finalized model's, float32 values in and out.

    Args:
        vectors: number of inputs on which the model, the integer model and onnxruntime are compared.
        qonnx_vectors: number of inputs for the executor of qonnx, which is slow.
        dialect: the tool that ``qonnx.onnx`` is for: "hls4ml" or "finn"; "exact": every quantizer is represented, for other tools.
    """

    vectors: int = setting(1000, ge=64)
    qonnx_vectors: int = setting(100, ge=1, le=1_000_000)
    dialect: Dialect = "exact"

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a package is missing."""
        for package in ("onnx", "onnxruntime", "qonnx"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"export=onnx needs {package}: {extra('onnx')}")
        self.checked_graph(model, input_shape)
        self._qonnx()(record(finalize(model), input_shape)).model()

    def checked_graph(self, model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        """Return the graph of a model, after checking that it can be exported in the dialect."""
        graph = checked(model, input_shape, MODES)
        if self.dialect != "exact":
            check_dialect(graph, self.dialect)
        return graph

    def _qonnx(self) -> "type[PlainGraph]":
        from pquant.export.onnx.dialects import FinnGraph
        from pquant.export.onnx.hls4ml import Hls4mlGraph
        from pquant.export.onnx.qonnx import QonnxGraph

        return {"exact": QonnxGraph, "hls4ml": Hls4mlGraph, "finn": FinnGraph}[self.dialect]

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write ``export/onnx/*.onnx`` and ``export/integers.*`` under ``folder`` and return ``onnx/...`` metrics.

        Raises:
            ConfigError: a model that cannot be exported, or whose output ignores its input.
            ExportError: a file gives other values than the model.
        """
        from onnx.helper import set_model_props

        from pquant.export.onnx.graph import PlainGraph
        from pquant.export.onnx.qonnx import QdqGraph

        target = folder / "export" / "onnx"
        _, splits, graph, vectors, verified = self.verified_model(model, splits, target.parent)
        target.mkdir(exist_ok=True)
        few = (verified.input_values.astype(np.float32) if self.dialect == "finn" else vectors)[: self.qonnx_vectors]
        runs: dict[str, tuple[type[PlainGraph], Callable[[bytes, np.ndarray], np.ndarray], np.ndarray]] = {
            "model": (PlainGraph, run_onnxruntime, vectors),
            "qonnx": (self._qonnx(), run_qonnx, few),
            "qdq": (QdqGraph, run_onnxruntime, vectors),
        }
        metrics: dict[str, Any] = {"onnx/dialect": self.dialect, "onnx/vectors": len(vectors)}
        for name, (kind, run, given) in runs.items():
            made = kind(graph).model()
            if name == "qdq" and not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
                log.info("no qdq.onnx: QuantizeLinear rounds halves to even, which quantization.round_mode=RND_CONV does")
                continue
            set_model_props(made, {name: json.dumps(value) for name, value in splits.described.items()})
            content = made.SerializeToString()
            _compare(name, run(content, given), verified.output_values[: len(given)])
            write_atomic(target / f"{name}.onnx", content)
            metrics[f"onnx/{name}_bit_exact"] = True
        return metrics


def _compare(name: str, seen: np.ndarray, expected: np.ndarray) -> None:
    if seen.shape != expected.shape:
        raise ExportError(f"{name}.onnx gives outputs of shape {seen.shape[1:]}, the model of shape {expected.shape[1:]}")
    if not np.array_equal(seen, expected):
        where = first_difference(seen, expected)
        vector, *place = where
        raise ExportError(
            f"{name}.onnx and the model differ at output {place}, vector {vector}: "
            f"the file gives {seen[where]:.10g}, the model {expected[where]:.10g}"
        )


def run_onnxruntime(content: bytes, vectors: np.ndarray) -> np.ndarray:
    """Return the outputs of onnxruntime, in one thread and without graph optimization."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input": vectors})[0]


def run_qonnx(content: bytes, vectors: np.ndarray) -> np.ndarray:
    """Return the outputs of the executor of qonnx."""
    import onnx
    import onnxruntime
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    onnxruntime.set_default_logger_severity(3)  # qonnx runs single nodes of an old opset, of which onnxruntime warns
    model = onnx.load_from_string(content)
    given, returned = model.graph.input[0], model.graph.output[0]
    for port in (given, returned):
        port.type.tensor_type.shape.dim[0].dim_value = 1
    wrapped = ModelWrapper(model).transform(InferShapes())
    return np.concatenate([execute_onnx(wrapped, {given.name: vector[None]})[returned.name] for vector in vectors])

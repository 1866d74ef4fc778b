"""ONNX: with standard operators, with QONNX's Quant nodes, and with QuantizeLinear if that rounds the same way."""

import importlib.util
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pquant.data.splits import Splits
from pquant.errors import ConfigError, ExportError
from pquant.export.check import ALL_MODES, checked
from pquant.export.constant import check_outputs
from pquant.export.exporter import HardwareExport
from pquant.export.integers import verify, write_integers
from pquant.export.raw_inputs import deployed
from pquant.export.replay import input_format
from pquant.export.vectors import test_vectors
from pquant.settings import schema, setting
from pquant.tracking.files import write_atomic

log = logging.getLogger(__name__)

MODES = ALL_MODES - {"WRAP_SM"}


@schema("export", "onnx")
@dataclass(frozen=True)
class ONNX(HardwareExport):
    """ONNX files whose outputs equal the finalized model's, float32 values in and out.

    Args:
        vectors: how many inputs the model, its integers and onnxruntime are compared on.
        qonnx_vectors: how many the executor of qonnx gets, which is slow.
    """

    vectors: int = setting(1000, ge=64)
    qonnx_vectors: int = setting(100, ge=1, le=1_000_000)

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a package is missing."""
        for package in ("onnx", "onnxruntime", "qonnx"):
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"export=onnx needs {package}: pip install 'pquant[onnx]'")
        checked(model, input_shape, MODES)

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write ``export/onnx/*.onnx`` and ``export/integers.*`` under ``folder`` and return ``onnx/...`` metrics.

        Raises:
            ConfigError: a model that cannot be exported, or whose output ignores its input.
            ExportError: a file gives other values than the model.
        """
        from onnx.helper import set_model_props

        from pquant.export.onnx_graph import PlainGraph, QdqGraph, QonnxGraph

        model, splits = deployed(model, splits, self.raw_inputs)
        self.check(model, tuple(splits.input_shape))
        graph = checked(model, tuple(splits.input_shape), MODES)
        vectors = test_vectors(splits.test, input_format(graph), self.vectors)
        verified = verify(model, graph, vectors)
        check_outputs(graph, verified, splits.classes)
        expected = np.ldexp(verified.outputs.astype(np.float64), -verified.output_f)
        target = folder / "export" / "onnx"
        target.mkdir(parents=True, exist_ok=True)
        write_integers(graph, verified, target.parent, splits.described)
        metrics: dict[str, Any] = {"onnx/vectors": len(vectors)}
        runs: dict[str, tuple[type[PlainGraph], Callable[[bytes, np.ndarray], np.ndarray], int]] = {
            "model": (PlainGraph, run_onnxruntime, len(vectors)),
            "qonnx": (QonnxGraph, run_qonnx, self.qonnx_vectors),
            "qdq": (QdqGraph, run_onnxruntime, len(vectors)),
        }
        for name, (kind, run, count) in runs.items():
            made = kind(graph).model()
            if name == "qdq" and not any(node.op_type == "QuantizeLinear" for node in made.graph.node):
                log.info("no qdq.onnx: QuantizeLinear rounds halves to even, which quantization.round_mode=RND_CONV does")
                continue
            set_model_props(made, {name: json.dumps(value) for name, value in splits.described.items()})
            content = made.SerializeToString()
            _compare(name, run(content, vectors[:count]), expected[:count])
            write_atomic(target / f"{name}.onnx", content)
            metrics[f"onnx/{name}_bit_exact"] = True
        return metrics


def _compare(name: str, seen: np.ndarray, expected: np.ndarray) -> None:
    if not np.array_equal(seen, expected):
        vector, *place = (int(at) for at in np.argwhere(seen != expected)[0])
        there = seen[(vector, *place)], expected[(vector, *place)]
        raise ExportError(
            f"{name}.onnx and the model differ at output {place}, vector {vector}: the file gives {there[0]:.10g}, the model {there[1]:.10g}"
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
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    model = onnx.load_from_string(content)
    for port in (*model.graph.input, *model.graph.output):
        port.type.tensor_type.shape.dim[0].dim_value = 1
    wrapped = ModelWrapper(model).transform(InferShapes())
    return np.concatenate([execute_onnx(wrapped, {"input": vector[None]})["output"] for vector in vectors])

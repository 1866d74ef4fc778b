"""An hls4ml project: HLS C++ of a dense network, compiled with g++ and compared with the model."""

import importlib.util
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from pquant.data.splits import Splits
from pquant.errors import ConfigError, ExportError
from pquant.export.arithmetic import parameters
from pquant.export.check import ALL_MODES, checked
from pquant.export.constant import check_outputs
from pquant.export.exporter import HardwareExport
from pquant.export.fixed import Fixed
from pquant.export.formats import Format
from pquant.export.graph import Graph, LayerStep, MoveStep, Step
from pquant.export.integers import verify, write_integers
from pquant.export.raw_inputs import deployed
from pquant.export.replay import input_format, quantized_input, replay
from pquant.export.vectors import test_vectors
from pquant.layers.activation import PQActivation
from pquant.layers.dense import PQDense
from pquant.settings import schema, setting
from pquant.tracking.files import write_json

MODES = ALL_MODES - {"WRAP_SM"}


@schema("export", "hls4ml")
@dataclass(frozen=True)
class HLS4ML(HardwareExport):
    """A project for dense networks with ReLU, one format per tensor: each layer has the exact precision of its sum, each quantizer is a cast.

    Args:
        backend: hls4ml's name of the HLS tool that the project is for; none is run.
        part: the FPGA.
        clock_period: ns.
        vectors: how many inputs the model, its integers and the compiled C++ are compared on.
    """

    backend: Literal["Vitis", "Vivado"] = "Vitis"
    part: str = "xcvu13p-flga2577-2-e"
    clock_period: float = setting(5.0, gt=0)
    vectors: int = setting(1000, ge=64)

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a tool is missing."""
        if importlib.util.find_spec("hls4ml") is None:
            raise ConfigError("export=hls4ml needs hls4ml: pip install 'pquant[hls4ml]'")
        if shutil.which("g++") is None:
            raise ConfigError("export=hls4ml compares with the compiled C++ and needs g++ on the PATH")
        problems = list(_problems(checked(model, input_shape, MODES)))
        if problems:
            raise ConfigError(f"export=hls4ml takes a sequence of dense layers and ReLUs, one format per tensor: {'; '.join(problems)}")

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write ``export/hls4ml`` and ``export/integers.*`` under ``folder`` and return ``hls4ml/...`` metrics.

        Raises:
            ConfigError: a model that cannot be exported, or whose output ignores its input.
            ExportError: the compiled project gives other values than the model.
        """
        model, splits = deployed(model, splits, self.raw_inputs)
        self.check(model, tuple(splits.input_shape))
        graph = checked(model, tuple(splits.input_shape), MODES)
        verified = verify(model, graph, test_vectors(splits.test, input_format(graph), self.vectors))
        check_outputs(graph, verified, splits.classes)
        target = folder / "export" / "hls4ml"
        target.mkdir(parents=True, exist_ok=True)
        write_integers(graph, verified, target.parent, splits.described)
        project = self._project(graph, target)
        project.compile()
        write_json(target / "data.json", splits.described)
        given = np.ldexp(verified.inputs.astype(np.float64), -verified.input_f).astype(np.float32).reshape(verified.count, -1)
        expected = np.ldexp(verified.outputs.astype(np.float64), -verified.output_f)
        seen = project.predict(np.ascontiguousarray(given)).reshape(expected.shape)
        if not np.array_equal(seen, expected):
            vector, place = (int(at) for at in np.argwhere(seen != expected)[0])
            raise ExportError(
                f"hls4ml's project and the model differ at output {place}, vector {vector}: the C++ gives {seen[vector, place]:.10g}, "
                f"the model {expected[vector, place]:.10g}"
            )
        return {"hls4ml/vectors": verified.count, "hls4ml/bit_exact": True}

    def _project(self, graph: Graph, target: Path) -> Any:
        from hls4ml.model.graph import ModelGraph

        layers, precisions = describe(graph)
        config = {
            "OutputDir": str(target),
            "ProjectName": "net",
            "Backend": self.backend,
            "Part": self.part,
            "ClockPeriod": self.clock_period,
            "IOType": "io_parallel",
            "HLSConfig": {
                "Model": {"Precision": {"default": "fixed<32,16>"}, "ReuseFactor": 1, "Strategy": "Latency"},
                "LayerName": {name: {"Precision": precision, "Trace": False} for name, precision in precisions.items()},
            },
        }
        return ModelGraph.from_layer_list(config, layers)


def describe(graph: Graph) -> tuple[list[dict[str, Any]], dict[str, dict[str, str]]]:
    """Return hls4ml's layers in order, and the precisions of each by name."""
    size = math.prod(graph.input_shape)
    layers: list[dict[str, Any]] = [{"class_name": "InputLayer", "name": "model_inp", "input_shape": [size]}]
    precisions = {"model_inp": {"result": precision(input_format(graph))}}
    sums: dict[str, Fixed] = {}

    def note(step: Step, value: Fixed) -> None:
        sums[step.name] = value

    replay(graph, quantized_input(graph, np.zeros((1, *graph.input_shape))), note)
    for step in graph.layers:
        layer: Any = step.layer
        name = "layer_" + step.name.replace(".", "_")
        width = int(math.prod(step.shape))
        for kind, quantizer in (("input", layer.input_quantizer), ("", None), ("output", layer.output_quantizer)):
            form = Format.of(quantizer) if quantizer is not None else None
            if form is not None:
                cast = f"{name}_{kind}"
                size = layer.in_features if kind == "input" and isinstance(layer, PQDense) else width
                layers.append({"class_name": "Activation", "name": cast, "activation": "linear", "n_in": size})
                precisions[cast] = {"result": precision(form)}
            elif quantizer is None and isinstance(layer, PQDense):
                layers.append(_dense(name, layer))
                precisions[name] = _dense_precisions(layer, sums[step.name])
            elif quantizer is None and not layer.rectifies:
                layers.append({"class_name": "Activation", "name": name, "activation": "relu", "n_in": width})
                precisions[name] = {"result": _sum_precision(sums[step.name])}
    return layers, precisions


def _dense(name: str, layer: PQDense) -> dict[str, Any]:
    weight = parameters(layer, "weight").floats.T
    bias = np.zeros(layer.out_features) if layer.bias is None else parameters(layer, "bias").floats
    sizes = {"n_in": layer.in_features, "n_out": layer.out_features}
    return {"class_name": "Dense", "name": name, **sizes, "weight_data": weight, "bias_data": bias, "use_bias": True}


def _dense_precisions(layer: PQDense, value: Fixed) -> dict[str, str]:
    total = _sum_precision(value)
    bias = total if layer.bias is None else _parameter_precision(layer.bias_quantizer)
    return {"weight": _parameter_precision(layer.weight_quantizer), "bias": bias, "accum": total, "result": total}


def _sum_precision(value: Fixed) -> str:
    bits = max(value.peak, value.largest).bit_length() + 1
    return f"fixed<{bits},{bits - value.f}>"


def _parameter_precision(quantizer: Any) -> str:
    form = Format.of(quantizer)
    assert form is not None
    i, f = int(form.i.max()), int(form.f.max())
    return f"fixed<{1 + i + f},{1 + i}>"


def precision(form: Format) -> str:
    """Return hls4ml's text for a format that all values share."""
    k, i, f = (int(bits.max()) for bits in (form.k, form.i, form.f))
    return f"{'' if k else 'u'}fixed<{k + i + f},{k + i},{form.round_mode},{form.overflow_mode}>"


def _problems(graph: Graph) -> Iterator[str]:
    names = [step.name for step in graph.layers]
    yield from (f"'{name}' is called more than once" for name in dict.fromkeys(names) if names.count(name) > 1)
    for at, step in enumerate(graph.steps):
        if step.inputs != (at,):
            yield f"'{step.name}' is not part of a plain sequence"
        elif isinstance(step, MoveStep):
            if not step.reshapes:
                yield f"'{step.name}' moves values"
        elif isinstance(step, LayerStep):
            yield from _of_layer(step)
    if graph.output != len(graph.steps):
        yield "the model returns something else than its last step"


def _of_layer(step: LayerStep) -> Iterator[str]:
    layer: Any = step.layer
    relu = isinstance(layer, PQActivation) and layer.kind == "relu" and layer.multiplier is None
    if not (relu or isinstance(layer, PQDense) and len(step.shape) == 1):
        yield f"'{step.name}' is a {type(layer).__name__}{'' if not isinstance(layer, PQActivation) else ' of another kind'}"
    for quantizer in (layer.input_quantizer, layer.output_quantizer):
        form = Format.of(quantizer) if not quantizer.is_float else None
        if form is not None and (form.f.size > 1 or int(form.width.max()) == 0):
            yield f"'{step.name}' has data of several formats, or of no bits"

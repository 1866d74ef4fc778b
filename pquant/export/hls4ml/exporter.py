"""The exporter to hls4ml: its settings, its checks before training, and the comparison with the compiled C++."""

import importlib.metadata
import importlib.util
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from pquant.data.splits import Splits
from pquant.errors import ConfigError, ExportError, did_you_mean, unknown
from pquant.export.check import ALL_MODES, checked
from pquant.export.exporter import HardwareExport
from pquant.export.graph import Graph
from pquant.export.hls4ml.build import build, weighted, write
from pquant.export.hls4ml.layers import CONVOLUTIONS
from pquant.export.hls4ml.lower import lower
from pquant.export.hls4ml.project import Target
from pquant.export.hls4ml.readme import Built, readme
from pquant.export.hls4ml.simulate import simulate
from pquant.export.integers import first_difference
from pquant.export.recording import record
from pquant.installation import extra
from pquant.layers.base import PARAMETERS
from pquant.layers.dense import PQDense
from pquant.layers.finalize import finalize
from pquant.quantization.quantizer import Quantizer
from pquant.settings import schema, setting
from pquant.tracking.files import write_atomic, write_json

log = logging.getLogger(__name__)

MODES = ALL_MODES - {"WRAP_SM"}
STRATEGIES = {
    **dict.fromkeys(("Vitis", "Vivado"), ("latency", "resource", "distributed_arithmetic")),
    **dict.fromkeys(("Quartus", "oneAPI"), ("resource",)),
    **dict.fromkeys(("Catapult", "Libero"), ("latency", "resource")),
}
COMPILERS = {"oneAPI": "icpx", "Libero": "shls"}
DA4ML = ((0, 5, 2), (0, 6))


@schema("export", "hls4ml")
@dataclass(frozen=True)
class HLS4ML(HardwareExport):
    """A project of hls4ml: each sum and product has the type that holds it exactly, each quantizer is a cast.

    Args:
        backend: the HLS tool that the project is for; none is run. Its C++ is compiled with g++, that of oneAPI with icpx, that of Libero with shls.
        part: the FPGA; null: hls4ml's default for the backend.
        clock_period: the clock period in ns.
        io_type: "parallel": all values of a tensor at once; "stream": one position after another.
        strategy: "latency": one multiplier per weight; "resource": several weights share a multiplier; "distributed_arithmetic": additions instead of
            multipliers, which needs da4ml.
        reuse_factor: number of weights that share a multiplier; with strategy "latency", clock cycles between two inputs.
        strategy_by_layer: strategies of single layers, by their names.
        reuse_factor_by_layer: reuse factors of single layers, by their names.
        vectors: number of inputs on which the model, the integer model and the compiled C++ are compared.
    """

    backend: Literal["Vitis", "Vivado", "Quartus", "Catapult", "oneAPI", "Libero"] = "Vitis"
    part: str | None = None
    clock_period: float = setting(5.0, gt=0)
    io_type: Literal["parallel", "stream"] = "parallel"
    strategy: Literal["latency", "resource", "distributed_arithmetic"] = "latency"
    reuse_factor: int = setting(1, ge=1)
    strategy_by_layer: dict[str, Any] = setting({})
    reuse_factor_by_layer: dict[str, Any] = setting({})
    vectors: int = setting(1000, ge=64)

    def __post_init__(self) -> None:
        """Check the strategies and reuse factors, of all layers and of single ones."""
        super().__post_init__()
        for name, strategy in {"": self.strategy, **self.strategy_by_layer}.items():
            field = f"strategy_by_layer.{name}" if name else "strategy"
            known = STRATEGIES[self.backend]
            if strategy not in known:
                hint = did_you_mean(strategy, known)
                raise ConfigError(f"HLS4ML.{field} must be one of {', '.join(known)} for backend {self.backend}, got {strategy!r}{hint}")
        for name, factor in self.reuse_factor_by_layer.items():
            if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
                raise ConfigError(f"HLS4ML.reuse_factor_by_layer.{name} must be an integer in [1, inf), got {factor!r}")
        if self.strategy == "distributed_arithmetic" and self.reuse_factor > 1:
            raise self.error("reuse_factor", "1 with strategy=distributed_arithmetic, which has no multipliers to share")

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a tool is missing."""
        graph = self.checked_graph(model, input_shape)
        if self.io_type == "stream" or not Target(self.backend).amd:
            self._check_formats(graph)
        self._built(record(finalize(model), input_shape), Path("export"))

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write ``export/hls4ml`` and ``export/integers.*`` under ``folder`` and return ``hls4ml/...`` metrics.

        Raises:
            ConfigError: a model that cannot be exported, or whose output ignores its input.
            ExportError: the project cannot be compiled, or gives other values than the model.
        """
        target = folder / "export" / "hls4ml"
        _, splits, graph, _, verified = self.verified_model(model, splits, target.parent)
        target.mkdir(exist_ok=True)
        built = self._built(graph, target)
        expected = verified.output_values
        flat = verified.input_values.reshape(verified.count, -1)[:, built.input.order.ravel()]
        write(built.made)
        try:
            seen = simulate(target, flat)
        except RuntimeError as error:
            raise ExportError(f"hls4ml's project does not run: {error}") from error
        _compare(seen.reshape(expected.shape), expected)
        write_json(target / "data.json", splits.described)
        compiler = COMPILERS.get(self.backend, "g++")
        write_atomic(target / "README.md", readme(built, self.backend, compiler, verified.count))
        return {"hls4ml/vectors": verified.count, "hls4ml/bit_exact": True}

    def checked_graph(self, model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        """Return the graph of a model, after checking that it can be exported with the installed tools."""
        self._check_tools()
        return checked(model, input_shape, MODES)

    def _check_tools(self) -> None:
        if importlib.util.find_spec("hls4ml") is None:
            raise ConfigError(f"export=hls4ml needs hls4ml: {extra('hls4ml')}")
        compiler = COMPILERS.get(self.backend, "g++")
        if shutil.which(compiler) is None:
            raise ConfigError(f"export=hls4ml compares with the compiled C++ and needs {compiler} on the PATH for backend={self.backend}")
        if "distributed_arithmetic" in (self.strategy, *self.strategy_by_layer.values()) and not _has_da4ml():
            raise ConfigError("export.strategy=distributed_arithmetic needs a da4ml that hls4ml 1.3 knows: pip install 'da4ml>=0.5.2,<0.6'")

    def _check_formats(self, graph: Graph) -> None:
        """Raise a ConfigError for data that may have several formats after training."""
        for step in graph.layers:
            quantizers = [part for name, part in step.layer.named_children() if isinstance(part, Quantizer) and name not in PARAMETERS]
            if any(form is not None and max(bits.numel() for bits in form) > 1 for form in (part.format() for part in quantizers)):
                raise ConfigError(
                    f"export=hls4ml: '{step.name}' has a format for each channel or value of its data, which hls4ml takes for Vitis and Vivado only, "
                    "with io_type=parallel: set quantization.data_granularity=per_tensor"
                )

    def _built(self, graph: Graph, folder: Path) -> Built:
        """Return hls4ml's graph of a finalized model.

        Raises:
            ConfigError: layers or settings that hls4ml does not take.
        """
        names = list(dict.fromkeys(step.name for step in graph.layers if isinstance(step.layer, (PQDense, *CONVOLUTIONS))))
        for field in ("strategy_by_layer", "reuse_factor_by_layer"):
            for name in getattr(self, field):
                if name not in names:
                    raise ConfigError(f"export.{field}: {unknown('layer with weights', name, names)}")
        settings = {name: self._of_layer(name) for name in names}
        resource = frozenset(name for name, of_layer in settings.items() if of_layer["Strategy"] == "resource")
        project, given, output = lower(graph, Target(self.backend, self.io_type == "stream", resource))
        tool = {"backend": self.backend, "part": self.part, "clock_period": self.clock_period, "io_type": f"io_{self.io_type}"}
        by_layer = weighted(project, settings, self.reuse_factor)
        own = {project.origins[layer]: taken for layer, taken in by_layer.items() if project.origins[layer] in settings}
        self._check_reuse({name: taken["ReuseFactor"] for name, taken in own.items()})
        made = build(project, output, folder, tool, self.reuse_factor, by_layer)
        return Built(made, given, output, own, {"input": project.types[given.layer]["result"], "output": project.types[output.layer]["result"]})

    def _of_layer(self, name: str) -> dict[str, Any]:
        strategy = self.strategy_by_layer.get(name, self.strategy)
        return {
            "Strategy": strategy,
            "ReuseFactor": self.reuse_factor_by_layer.get(name, 1 if strategy == "distributed_arithmetic" else self.reuse_factor),
        }

    def _check_reuse(self, taken: dict[str, int]) -> None:
        """Raise a ConfigError if hls4ml changes the reuse factor that is set for a layer; warn if it changes the common one for some layers."""
        changed = {name: factor for name, factor in taken.items() if factor != self._of_layer(name)["ReuseFactor"]}
        for name in changed.keys() & self.reuse_factor_by_layer.keys():
            given = self.reuse_factor_by_layer[name]
            raise ConfigError(
                f"export.reuse_factor_by_layer.{name}={given} does not divide the layer's products: {changed[name]} is the nearest that does"
            )
        if changed:
            text = ", ".join(f"{name}: {factor}" for name, factor in changed.items())
            log.warning("reuse_factor=%d does not divide the products of all layers; hls4ml takes the nearest: %s", self.reuse_factor, text)


def _has_da4ml() -> bool:
    """Return whether the version of da4ml that hls4ml supports is installed."""
    try:
        version = importlib.metadata.version("da4ml")
    except importlib.metadata.PackageNotFoundError:
        return False
    return DA4ML[0] <= tuple(int(part) for part in version.split(".")[:3] if part.isdigit()) < DA4ML[1]


def _compare(seen: np.ndarray, expected: np.ndarray) -> None:
    if np.array_equal(seen, expected):
        return
    where = first_difference(seen, expected)
    vector, *place = where
    raise ExportError(
        f"hls4ml's project and the model differ at output {place[0] if len(place) == 1 else tuple(place)}, vector {vector}: "
        f"the C++ gives {seen[where]:.10g}, the model {expected[where]:.10g}"
    )

"""Verilog that is bit-exact to the finalized model, and its cost in look-up tables."""

import importlib.util
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from pquant.data.splits import Splits
from pquant.errors import ConfigError, ExportError
from pquant.export.check import check_arithmetic, check_widths, checked, multiplications
from pquant.export.exporter import HardwareExport
from pquant.export.fixed import Fixed
from pquant.export.graph import Graph
from pquant.export.integers import Verified, first_difference
from pquant.export.replay import input_format
from pquant.export.rtl.bench import Design, Flavor, Interface
from pquant.export.rtl.ports import Port
from pquant.export.rtl.preprocessing import markdown
from pquant.export.rtl.simulation import find_simulator, simulate
from pquant.export.rtl.synthesis import count_cells, count_modules, name_ports, name_top, yosys_command
from pquant.export.text import render
from pquant.installation import extra
from pquant.metrics import layer_table
from pquant.settings import schema, setting
from pquant.tracking.files import write_atomic, write_json

log = logging.getLogger(__name__)

TOP = "net"
SHOWN = 64
MOST_BITS = 32
"""Largest width of a sum, sign included: alkaid computes constants of sums in 32 bits, and returns wrong logic for wider ones."""
MODES = frozenset("TRN TRN_ZERO RND RND_CONV RND_ZERO RND_INF RND_MIN_INF SAT SAT_SYM WRAP".split())


@schema("export", "rtl")
@dataclass(frozen=True)
class RTL(HardwareExport):
    """Fully unrolled Verilog or VHDL by alkaid, verified and counted.

    Args:
        flavor: the language; Yosys counts look-up tables of Verilog alone.
        interface: the ports of the outermost module; "packed": all values in one input and one output; "elements": a port for each value;
            "axi_stream": AXI4-Stream with valid and ready, in Verilog.
        clock_period: the clock period in ns, for the constraints and the latency.
        pipelined: whether to pipeline the logic with registers; else it is combinational.
        latency_cutoff: the largest delay in ns between two registers, as alkaid estimates it; null for the clock period.
        vectors: number of inputs on which the model, the integer model and alkaid's emulator are compared.
        simulator: the simulator; "auto": Icarus Verilog, else Verilator, for VHDL GHDL, if installed; "emulator": none.
        simulated_vectors: the number of inputs that are simulated.
        synthesize: whether Yosys counts look-up tables; "auto": if Yosys is installed and the estimate is at most ``synthesis_limit`` LUTs.
        synthesis_limit: the limit in LUTs.
        family: Yosys' name of the Xilinx family: xc7, xcu (UltraScale) or xcup (UltraScale+).
        part: the FPGA part for the Vivado script, which pquant does not run.
        max_multiplications: the largest number of multiplications by a weight, pruned weights included; all run in parallel in hardware.
        by_layer: whether resources are also given by layer. Where Yosys counts the whole, it counts the layers in a second pass.
    """

    flavor: Flavor = "verilog"
    interface: Interface = "packed"
    clock_period: float = setting(5.0, gt=0)
    pipelined: bool = True
    latency_cutoff: float | None = setting(None, gt=0)
    vectors: int = setting(10_000, ge=64)
    simulator: Literal["auto", "icarus", "verilator", "ghdl", "emulator"] = "auto"
    simulated_vectors: int = setting(200, ge=1, le=1_000_000)
    synthesize: Literal["auto", "yes", "no"] = "auto"
    synthesis_limit: int = setting(5_000, ge=0)
    family: Literal["xc7", "xcu", "xcup"] = "xcup"
    part: str = "xcvu13p-flga2577-2-e"
    max_multiplications: int = setting(2_000_000, ge=1)
    by_layer: bool = True

    def check(self, model: nn.Module, input_shape: tuple[int, ...]) -> None:
        """Raise a ConfigError if a compressed model, before training, cannot be exported, or if a tool is missing."""
        self.checked_graph(model, input_shape)
        check_arithmetic(model, input_shape, MOST_BITS)

    def checked_graph(self, model: nn.Module, input_shape: tuple[int, ...]) -> Graph:
        """Return the graph of a model, after checking that it can be exported with the installed tools."""
        if importlib.util.find_spec("alkaid") is None:
            raise ConfigError(f"export=rtl needs alkaid: {extra('rtl')}")
        if self.flavor == "vhdl" and (self.interface == "axi_stream" or self.synthesize == "yes"):
            what = "interface=axi_stream" if self.interface == "axi_stream" else "synthesize=yes, as Yosys reads Verilog"
            raise ConfigError(f"RTL.{what}, needs RTL.flavor=verilog, got vhdl")
        find_simulator(self.simulator, self.flavor)
        if self.synthesize == "yes" and yosys_command() is None:
            raise ConfigError(f"RTL.synthesize is 'yes', but Yosys is not installed: {extra('rtl')}, or put yosys on the PATH")
        graph = checked(model, input_shape, MODES)
        count = multiplications(graph)
        if count > self.max_multiplications:
            raise ConfigError(
                f"export=rtl unrolls all {count:,} multiplications of an inference into parallel logic, "
                f"RTL.max_multiplications is {self.max_multiplications:,}"
            )
        return graph

    def export(self, model: nn.Module, splits: Splits, folder: Path) -> dict[str, Any]:
        """Write ``export/rtl`` and ``export/integers.*`` under ``folder`` and return ``rtl/...`` metrics.

        Raises:
            ConfigError: the model cannot become hardware, or its output ignores its input.
            ExportError: model, integers, emulator and simulation do not all give the same bits.
        """
        from alkaid.codegen.rtl import RTLModel

        from pquant.export.rtl.wires import logic

        start = time.perf_counter()
        target = folder / "export" / "rtl"
        model, splits, graph, _, verified = self.verified_model(model, splits, target.parent)
        check_widths(verified.accumulators, MOST_BITS)
        target.mkdir(exist_ok=True)
        comb = logic(graph)
        check_emulator(comb, graph, verified)
        cut = {"latency_cutoff": self.latency_cutoff or self.clock_period} if self.pipelined else {}
        rtl = RTLModel(
            comb, target, TOP, flavor=self.flavor, clock_period=self.clock_period, part_name=self.part, ternary_fuse=False, print_latency=False, **cut
        )
        rtl.write()
        cycles = int(rtl.latency or 0)
        metrics: dict[str, Any] = {
            "rtl/luts_estimated": round(comb.cost),
            "rtl/registers": rtl.reg_bits,
            "rtl/latency_cycles": cycles,
            "rtl/delay_ns_estimated": float(comb.latency[1]),
            "rtl/clock_period_ns": self.clock_period,
            "rtl/accumulator_bits": max((row.partial_bits for row in verified.accumulators), default=0),
            "rtl/vectors": verified.count,
        }
        inputs = Port.of("in", [qint.kif for qint in comb.inp_qint], graph.input_shape, splits.features)
        outputs = Port.of("out", [qint.kif for qint in comb.out_qint], graph.output_shape, splits.classes)
        design = Design(TOP, self.flavor, self.interface, inputs, outputs, cycles if self.pipelined else None)
        simulator = find_simulator(self.simulator, self.flavor)
        count = min(self.simulated_vectors, verified.count)
        design.write(target)
        name_top(target, design.top)
        name_ports(target, *design.ports)
        design.write_bench(target, verified, count, self.clock_period / 2)
        self._write_scripts(target, design)
        if simulator:
            check_simulation(simulator, target, design.sources(target), count)
        metrics |= {"rtl/bit_exact": True, "rtl/simulator": simulator or "alkaid's emulator", "rtl/simulated_vectors": count if simulator else 0}
        metrics |= self._count(target, metrics["rtl/luts_estimated"])
        resources = self._resources(target, graph, model, metrics) if self.by_layer else ""
        metrics["rtl/seconds"] = time.perf_counter() - start
        self._describe(target, graph, design, metrics, splits, resources)
        return metrics

    def _write_scripts(self, target: Path, design: Design) -> None:
        if design.flavor == "verilog":
            sources = [str(path.relative_to(target)) for path in design.sources(target)]
            write_atomic(target / "synth.ys", render("synth.ys.j2", sources=sources, family=self.family, top=design.top))
        write_atomic(target / "Makefile", render("Makefile.j2", suffix=design.suffix))

    def _count(self, target: Path, estimated: int) -> dict[str, float]:
        command = yosys_command()
        if self.flavor == "vhdl" or self.synthesize == "no" or command is None or self.synthesize == "auto" and estimated > self.synthesis_limit:
            log.info(
                "no Yosys count: RTL.synthesize=%s, %s, %d LUTs estimated",
                self.synthesize,
                "Yosys" if command else "no Yosys",
                estimated,
            )
            return {}
        start = time.perf_counter()
        counts = count_cells(command, target / "synth.ys")
        return {f"rtl/{kind}_yosys": count for kind, count in counts.items()} | {"rtl/yosys_seconds": time.perf_counter() - start}

    def _resources(self, target: Path, graph: Graph, model: nn.Module, metrics: Mapping[str, Any]) -> str:
        from pquant.export.rtl.resources import table, write_resources

        def count(folder: Path, sources: Sequence[str], top: str) -> Mapping[str, Mapping[str, int]]:
            return count_modules(yosys_command() or [], folder, sources, top, self.family)

        ebops = {row["name"]: row["ebops"] for row in layer_table(model)}
        cutoff = (self.latency_cutoff or self.clock_period) if self.pipelined else None
        rows = write_resources(graph, ebops, target, cutoff, count if "rtl/luts_yosys" in metrics else None)
        return table(rows, metrics["rtl/luts_estimated"], metrics.get("rtl/luts_yosys"))

    def _describe(self, target: Path, graph: Graph, design: Design, metrics: Mapping[str, Any], splits: Splits, resources: str) -> None:
        form = input_format(graph)
        simulator, simulated = metrics["rtl/simulator"], metrics["rtl/simulated_vectors"]
        texts = {
            which: {"elements": port.elements, "bits": port.bits, "meaning": f"integer times 2^{-port.f}", "each": port.rows()}
            for which, port in (("input", design.inputs), ("output", design.outputs))
        }
        write_json(target / "formats.json", {"model_inp": vars(form), "ports": texts, "data": splits.described})
        text = render(
            "README.md.j2",
            top=design.top,
            core=design.core,
            interface=design.interface,
            suffix=design.suffix,
            language="Verilog" if design.flavor == "verilog" else "VHDL",
            verified=metrics["rtl/vectors"],
            simulated=simulated or "no",
            simulator=simulator if simulated else "a simulator, as none is installed",
            metrics={name.removeprefix("rtl/"): value for name, value in metrics.items()},
            ports=texts,
            shown=SHOWN,
            input_shape=tuple(graph.input_shape),
            output_shape=tuple(graph.output_shape),
            clocked=self.pipelined,
            latency=metrics["rtl/latency_cycles"],
            part=self.part,
            resources=resources,
            data=markdown(splits, form.round_mode, form.overflow_mode),
        )
        write_atomic(target / "README.md", text)


def check_emulator(comb: Any, graph: Graph, verified: Verified) -> None:
    """Compare alkaid's logic with the integers on all vectors.

    Raises:
        ExportError: they differ; the message names the first such layer.
    """
    given, expected = (values.reshape(verified.count, -1) for values in (verified.input_values, verified.output_values))
    try:
        seen = comb.predict(given, n_threads=1)
    except RuntimeError as error:
        raise ExportError(f"alkaid's logic cannot be evaluated: {error}; try another quantization.round_mode, such as RND") from error
    if np.array_equal(seen, expected):
        return
    vector, place = first_difference(seen, expected)
    raise ExportError(
        f"integers and alkaid's logic differ at output {place} {first_layer(graph, given[vector])}, vector {vector}: "
        f"the integers give {expected[vector, place]:.10g}, the logic {seen[vector, place]:.10g}"
    )


def first_layer(graph: Graph, given: np.ndarray) -> str:
    """Return the first layer whose logic differs from the integers for one quantized input, as text."""
    from pquant.export.replay import quantized_input, replay
    from pquant.export.rtl.wires import logic

    values = replay(graph, quantized_input(graph, given.reshape(1, *graph.input_shape)))[1:]
    seen, at = logic(graph, every_layer=True).predict(given[None], n_threads=1)[0], 0
    for step, value in zip(graph.steps, values, strict=True):
        part, at = seen[at : at + value.floats().size], at + value.floats().size
        if isinstance(value, Fixed) and not np.array_equal(part, value.floats().ravel()):
            return f"(first in layer '{step.name}')"
    return "(in no single layer)"


def check_simulation(simulator: str, target: Path, sources: list[Path], count: int) -> None:
    """Simulate the sources and compare all outputs with the expected ones.

    Raises:
        ExportError: they differ.
    """
    seen, expected = simulate(simulator, target, sources), (target / "sim" / "expected.hex").read_text().split()
    if len(seen) != count:
        raise ExportError(f"{simulator} gave {len(seen)} outputs for {count} vectors")
    for vector, (one, other) in enumerate(zip(seen, expected, strict=True)):
        if one != other:
            raise ExportError(f"integers and simulation differ at the model's output, vector {vector}: the integers give {other}, {simulator} {one}")

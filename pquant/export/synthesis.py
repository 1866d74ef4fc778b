"""Counts of look-up tables by Yosys."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

from pquant.errors import ExportError

SCRIPT = "import sys; from pyosys import libyosys; libyosys.run_pass('script ' + sys.argv[1], libyosys.Design())"
KINDS = {"luts": "LUT", "flip_flops": "FD", "carries": "CARRY"}


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
    done = subprocess.run([*command, script.name], cwd=script.parent, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ExportError(f"Yosys failed on {script}: {(done.stderr or done.stdout)[-2000:]}")
    cells = json.loads((script.parent / "yosys.json").read_text())["design"]["num_cells_by_type"]
    return {kind: sum(count for cell, count in cells.items() if cell.startswith(prefix)) for kind, prefix in KINDS.items()}

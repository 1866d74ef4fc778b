"""Compile a project and run it on inputs in a separate process, so that an assertion in the C++ ends only that process.

``python simulate.py <project> <inputs.npy> <outputs.npy>`` reads float64 inputs (count, values) and writes float64 outputs (count, outputs).
"""

import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

SHOWN = 3
CHARACTERS = 500


def simulate(project: Path, inputs: np.ndarray) -> np.ndarray:
    """Return the outputs (count, outputs), float64, of a written project for inputs (count, values), float64.

    Raises:
        RuntimeError: the project cannot be compiled, or ended with an error; the message has the first lines with errors.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "inputs.npy", Path(folder) / "outputs.npy"
        np.save(given, np.ascontiguousarray(inputs))
        command = [sys.executable, __file__, *map(str, (project.resolve(), given, made))]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=project)
        if done.returncode:
            raise RuntimeError(_errors(done.stderr) or f"it ended with {done.returncode}")
        return np.load(made).reshape(len(inputs), -1)


def _errors(printed: str) -> str:
    lines = [line.strip() for line in printed.splitlines() if "error" in line.lower() or "assertion" in line.lower()]
    return " ".join(lines[:SHOWN])[:CHARACTERS] or printed.strip()[-CHARACTERS:]


def _main(project: str, given: str, made: str) -> None:
    from hls4ml.utils.link import FilesystemModelGraph

    with contextlib.redirect_stdout(sys.stderr):
        graph = FilesystemModelGraph(project)
        graph.compile()
        np.save(made, graph.predict(np.load(given)))


if __name__ == "__main__":
    sys.path.pop(0)
    _main(*sys.argv[1:])

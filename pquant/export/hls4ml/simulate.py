"""Run a compiled project on inputs; as a program of its own, an assertion in the C++ ends that program only.

``python simulate.py <library> <function> <outputs>`` reads float64 inputs (count, values) in numpy's format and writes the outputs likewise.
"""

import ctypes
import io
import subprocess
import sys
from pathlib import Path

import numpy as np

SHOWN = 300


def simulate(library: Path, function: str, inputs: np.ndarray, outputs: int) -> np.ndarray:
    """Return (count, outputs) float64 that the C++ function gives for float64 (count, values).

    Raises:
        RuntimeError: the program ended with an error; its last message.
    """
    given = io.BytesIO()
    np.save(given, np.ascontiguousarray(inputs))
    command = [sys.executable, __file__, str(library), function, str(outputs)]
    done = subprocess.run(command, input=given.getvalue(), capture_output=True, cwd=library.parent)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"it ended with {done.returncode}"
        raise RuntimeError(said[-SHOWN:])
    return np.load(io.BytesIO(done.stdout[-_size(len(inputs), outputs) :]))


def _size(count: int, outputs: int) -> int:
    """Return how many bytes numpy's format takes; the C++ may print other text before."""
    content = io.BytesIO()
    np.save(content, np.zeros((count, outputs), np.float64))
    return content.tell()


def _main() -> None:
    top = getattr(ctypes.cdll.LoadLibrary(sys.argv[1]), sys.argv[2])
    inputs = np.load(io.BytesIO(sys.stdin.buffer.read()))
    results = np.zeros((len(inputs), int(sys.argv[3])), np.float64)
    pointer = np.ctypeslib.ndpointer(np.float64, flags="C_CONTIGUOUS")
    top.argtypes, top.restype = [pointer, pointer], None
    for given, result in zip(inputs, results, strict=True):
        top(given, result)
    content = io.BytesIO()
    np.save(content, results)
    sys.stdout.buffer.write(content.getvalue())


if __name__ == "__main__":
    _main()

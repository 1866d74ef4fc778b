"""Loops that PyTorch's own threads share, each the part of the values that it made.

They are the threads of the OpenMP library that PyTorch computes with: awake between two operations, with their parts in their cores' caches, and with
no others beside them that want the cores. Where that library does not let itself be called, one thread does all.
"""

import ctypes
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import llvmlite.binding
import numpy as np
import torch
from numba import cfunc, literal_unroll, njit, types

WORTH_SHARING = 2**13
"""Values from which on other threads are asked."""
Loop = Callable[[Any], None]
ENTRIES = {
    "GOMP_parallel": types.void(types.intp, types.intp, types.uint32, types.uint32),
    "omp_get_thread_num": types.int32(),
    "omp_get_num_threads": types.int32(),
}
_RUN = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_START = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
_ASK = ctypes.CFUNCTYPE(ctypes.c_int)
ALONE = _START(lambda loop, given, *_: _RUN(loop)(given)), _ASK(lambda: 0), _ASK(lambda: 1)
"""What stands for the entries of an OpenMP library with one thread."""


def openmp(folder: Path) -> tuple[Any, ...] | None:
    """Return the entries of the OpenMP library that PyTorch, whose libraries lie in ``folder``, uses; None where it has no such."""
    for path in sorted(folder.glob("libtorch_cpu.*")):
        library = ctypes.CDLL(str(path))
        if all(hasattr(library, name) for name in ENTRIES):
            return tuple(getattr(library, name) for name in ENTRIES)
    return None


for _name, _entry in zip(ENTRIES, openmp(Path(torch.__file__).parent / "lib") or ALONE, strict=True):
    llvmlite.binding.add_symbol(f"pquant_{_name}", ctypes.cast(_entry, ctypes.c_void_p).value)
_start: Any
_place: Any
_threads: Any
_start, _place, _threads = (types.ExternalFunction(f"pquant_{name}", signature) for name, signature in ENTRIES.items())


@njit
def part(size: int) -> tuple[int, int]:
    """Return where the part of this thread begins and ends."""
    each = (size + _threads() - 1) // _threads()
    begin = min(each * _place(), size)
    return begin, min(begin + each, size)


@njit(nogil=True, cache=True)
def _run(loop: int, threads: int, *given: Any) -> None:
    numbers, n = np.empty(len(given)), 0
    for number in literal_unroll(given):
        numbers[n] = number
        n += 1
    _start(loop, numbers.ctypes.data, threads, 0)


class shared:  # noqa: N801
    """A loop, as a decorator.

    It is called with how many values there are for all threads and with what else it needs. It is given a pointer to all these numbers, in float64,
    which holds addresses too, and asks :func:`part` what is its own. The first call compiles it.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop, self.__doc__ = loop, loop.__doc__

    @cached_property
    def _compiled(self) -> Any:
        return cfunc(types.void(types.CPointer(types.float64)), cache=True)(self.loop)

    @cached_property
    def _at(self) -> int:
        return self._compiled.address

    def __call__(self, values: int, *given: float) -> None:
        """Run the loop over so many values, in all threads where they are worth it."""
        _run(self._at, torch.get_num_threads() if values >= WORTH_SHARING else 1, values, *given)

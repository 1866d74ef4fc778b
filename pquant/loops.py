"""What loops over float32 values in memory share, compiled by Numba, and the loops of :mod:`pquant.flat`.

Imported where the first is run. Tensors come as addresses, which take a tenth of the time that arrays take.
"""

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

F = np.float32
ZERO, HALF, ONE, TWO = F(0.0), F(0.5), F(1.0), F(2.0)


def _pointer_to(kind: Any) -> Any:
    """Return the function that makes a pointer to values of a kind from an address."""

    @intrinsic
    def pointer(context: Any, address: Any) -> Any:
        def code(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], target.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), code

    return pointer


_floats, _bytes = _pointer_to(types.float32), _pointer_to(types.uint8)


@njit
def _array(address: int, shape: Any) -> Any:
    return carray(_floats(address), shape)


@njit
def _at(given: Any, n: int, shape: Any, first: int = 0) -> Any:
    """Return the values in memory, from the first on, of which a loop of :mod:`pquant.team` is given the address as its number ``n``."""
    return _array(int(given[n]) + 4 * first, shape)


@njit
def _clip(v: Any, low: Any, high: Any) -> Any:
    """Return v inside [low, high]; NaN, which min and max would hide, for NaN."""
    v = low if v < low else v
    return high if v > high else v


@njit(nogil=True, cache=True)
def gather(addresses: Any, sizes: Any, repeats: Any, total: int, out: int) -> None:
    """Write the values at each address to ``out``, end to end, each value as often as ``repeats`` says, ``total`` in all."""
    at, spread = 0, _array(out, (total,))
    for n in range(len(addresses)):
        values = _array(addresses[n], (sizes[n],))
        for a in range(sizes[n]):
            for b in range(repeats[n]):
                spread[at + b] = values[a]
            at += repeats[n]


@njit(nogil=True, cache=True)
def totals(x: int, total: int, sizes: Any, repeats: Any, out: int) -> None:
    """Write to ``out`` the sums over what :func:`gather` has repeated."""
    spread, sums = _array(x, (total,)), _array(out, (sizes.sum(),))
    at = place = 0
    for n in range(len(sizes)):
        for _ in range(sizes[n]):
            one = 0.0
            for b in range(repeats[n]):
                one += spread[at + b]
            sums[place] = one
            at += repeats[n]
            place += 1

"""What pruners count and rank, of all layers in one loop over memory, compiled by Numba; see :mod:`pquant.loops`.

Layers come as the addresses and sizes of their float32 values, which count by magnitude. NaN ranks above infinity and compares false, as in torch.
"""

from typing import Any

import numpy as np
from numba import njit

from pquant.loops import ONE, TWO, ZERO, F, _array

MAGNITUDE = np.int32(0x7FFFFFFF)
TINY = F(1e-12)


@njit
def _ranked(values: Any, rank: int) -> Any:
    """Return the ``rank``-th smallest magnitude: the bits of magnitudes are ordered as they are, so it is found by halving their range."""
    bits = values.view(np.int32)
    low, high = np.int32(0), MAGNITUDE
    while low < high:
        middle, count = np.int32(low + ((high - low) >> np.int32(1))), np.int32(0)
        for n in range(len(bits)):
            count += np.int32((bits[n] & MAGNITUDE) <= middle)
        if count >= rank:
            high = middle
        else:
            low = np.int32(middle + np.int32(1))
    return np.array([low], np.int32).view(np.float32)[0]


@njit
def _next(values: Any, rank: int, ranked: Any) -> Any:
    """Return what ranks after ``ranked``, the ``rank``-th smallest magnitude."""
    bits, at = values.view(np.int32), np.array([ranked], np.float32).view(np.int32)[0]
    count, above = np.int32(0), MAGNITUDE
    for n in range(len(bits)):
        one = bits[n] & MAGNITUDE
        count += np.int32(one <= at)
        above = min(above, one if one > at else MAGNITUDE)
    return ranked if count > rank else np.array([above], np.int32).view(np.float32)[0]


@njit(nogil=True, cache=True)
def halfway(addresses: Any, sizes: Any, counts: Any, results: Any) -> None:
    """Write the squares of what lies halfway between the ``count``-th smallest magnitude of each layer and the next to ``results``, by address."""
    for n in range(len(addresses)):
        border = _array(results[n], (1,))
        if 0 < counts[n] < sizes[n]:
            values = _array(addresses[n], (sizes[n],))
            below = _ranked(values, counts[n])
            above = _next(values, counts[n], below)
            middle = (np.sqrt(below * below) + np.sqrt(above * above)) / TWO
            border[0] = middle * middle
        else:
            border[0] = np.inf if counts[n] else -np.inf


@njit
def _keep(values: Any, pruned: int, out: Any) -> None:
    if pruned <= 0 or pruned >= len(values):
        out[:] = ONE if pruned <= 0 else ZERO
        return
    border = _ranked(values, pruned)
    room = len(values) - pruned
    for n in range(len(values)):
        room -= abs(values[n]) > border
    for n in range(len(values)):
        tied = abs(values[n]) == border and room > 0
        out[n] = ONE if tied or abs(values[n]) > border else ZERO
        room -= tied


@njit(nogil=True, cache=True)
def keep_largest(addresses: Any, sizes: Any, pruned: Any, out: int) -> None:
    """Write 1 for what stays of each layer's values when exactly the ``pruned`` smallest go, of equal ones the last first, else 0."""
    at, kept = 0, _array(out, (sizes.sum(),))
    for n in range(len(addresses)):
        _keep(_array(addresses[n], (sizes[n],)), pruned[n], kept[at : at + sizes[n]])
        at += sizes[n]


@njit(nogil=True, cache=True)
def give_way(addresses: Any, thresholds: Any, sizes: Any, repeats: Any, limits: Any, ranks: Any) -> int:
    """Bring down the thresholds of layers of which no more than ``limits`` are above them; return how many layers those are.

    They start again from 0, or where ``ranks`` is not 0, they are at most the magnitude of that rank.
    """
    given = 0
    for n in range(len(addresses)):
        values, bounds = _array(addresses[n], (sizes[n], repeats[n])), _array(thresholds[n], (sizes[n],))
        kept = 0
        for a in range(sizes[n]):
            for b in range(repeats[n]):
                kept += abs(values[a, b]) > bounds[a]
        if F(kept) > limits[n]:
            continue
        given += 1
        if ranks[n] == 0:
            bounds *= ZERO
        else:
            highest = _ranked(values.ravel(), ranks[n])
            for a in range(sizes[n]):
                bounds[a] = bounds[a] if bounds[a] <= highest or np.isnan(bounds[a]) else highest
    return given


@njit
def _zeros(values: Any, epsilon: Any) -> Any:
    zeros = 0
    for n in range(len(values)):
        zeros += abs(values[n]) <= epsilon
    return F(zeros) / F(len(values))


@njit(nogil=True, cache=True)
def shares(addresses: Any, sizes: Any, epsilon: float, out: int) -> None:
    """Write the share of each layer's magnitudes that are at most ``epsilon``."""
    share = _array(out, (len(sizes),))
    for n in range(len(addresses)):
        share[n] = _zeros(_array(addresses[n], (sizes[n],)), F(epsilon))


@njit(nogil=True, cache=True)
def pulls(addresses: Any, sizes: Any, ranks: Any, slopes: int, out: int) -> None:
    """Write the gradient of the sum of slope * (share of zeros), the slope of a share being that of -T_k(s) / sum(s); see MDMM."""
    at, slope, pull = 0, _array(slopes, (len(sizes),)), _array(out, (sizes.sum(),))
    for n in range(len(addresses)):
        values, total = _array(addresses[n], (sizes[n],)), 0.0
        border = _ranked(values, ranks[n]) if ranks[n] else -ONE
        for a in range(sizes[n]):
            total += abs(values[a])
        force = -slope[n] / max(F(total), TINY)
        for a in range(sizes[n]):
            one = values[a]
            sign = ONE if one > ZERO else (-ONE if one < ZERO else ZERO)
            pull[at + a] = force * sign if abs(one) <= border else ZERO
        at += sizes[n]


@njit(nogil=True, cache=True)
def near_largest(addresses: Any, sizes: Any, counts: Any, epsilon: float, side: int, near: float, out: int) -> None:
    """Write 1 for magnitudes above ``epsilon``; where zeros miss their share by less than ``near``, for all but the ``counts`` smallest.

    Zeros miss it where there are too few or too many, but for ``side`` 1 only too many, for -1 only too few.
    """
    at, kept, eps = 0, _array(out, (sizes.sum(),)), F(epsilon)
    for n in range(len(addresses)):
        values, mask = _array(addresses[n], (sizes[n],)), kept[at : at + sizes[n]]
        gap = _zeros(values, eps) - F(counts[n] / sizes[n])
        gap = abs(gap) if side == 0 else F(side) * gap
        if ZERO < gap < F(near):
            _keep(values, counts[n], mask)
        else:
            for a in range(sizes[n]):
                mask[a] = ONE if abs(values[a]) > eps else ZERO
        at += sizes[n]

"""Loops over float32 arrays, compiled by Numba, for :mod:`pquant.quantization.kernels`; imported where the first of them is run."""

import math
from typing import Any

import numpy as np
from numba import njit

F = np.float32
ZERO, HALF, ONE, TWO, LN2 = F(0.0), F(0.5), F(1.0), F(2.0), F(math.log(2))
MODES = {"RND": 0, "RND_CONV": 1, "TRN": 2, "TRN_ZERO": 3, "RND_ZERO": 4, "RND_INF": 5, "RND_MIN_INF": 6}
RND, RND_CONV, TRN, TRN_ZERO, RND_ZERO, RND_INF = range(6)


@njit
def _round(v: Any, mode: int) -> Any:
    if mode == RND:
        return np.ceil(np.floor(TWO * v) * HALF)
    if mode == RND_CONV:
        return np.rint(v)
    if mode == TRN:
        return np.floor(v)
    if mode == TRN_ZERO:
        return np.trunc(v)
    if mode == RND_ZERO:
        return np.copysign(np.floor(np.ceil(TWO * abs(v)) * HALF), v)
    if mode == RND_INF:
        return np.copysign(np.ceil(np.floor(TWO * abs(v)) * HALF), v)
    return np.floor(np.ceil(TWO * v) * HALF)


@njit
def _clip(v: Any, low: Any, high: Any) -> Any:
    """Return v inside [low, high]; NaN, which min and max would hide, for NaN."""
    v = low if v < low else v
    return high if v > high else v


@njit
def _fitted(v: Any, low: Any, high: Any, scale: Any, step: Any, mode: int) -> Any:
    return _round(_clip(v, low, high) * scale, mode) * step


@njit(nogil=True, cache=True)
def snap(x: Any, low: float, high: float, scale: float, step: float, mode: int) -> None:
    """Bring the values of a 1-d array into [low, high] and onto a grid, in place."""
    bottom, ceiling, up, down = F(low), F(high), F(scale), F(step)
    for n in range(len(x)):
        x[n] = _fitted(x[n], bottom, ceiling, up, down, mode)


@njit
def _powers(exponents: Any) -> Any:
    """Return 2^n for whole n from -126 to 127, made from its bits."""
    n = np.empty(len(exponents), np.int32)
    for c in range(len(exponents)):
        n[c] = (np.int32(_clip(exponents[c], F(-126), F(127))) + np.int32(127)) << np.int32(23)
    return n.view(np.float32)


@njit
def _formats(k: Any, i: Any, f: Any, symmetric: bool) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Return lowest and highest value, 2^f, 2^-f, 2^i, and 1 where there are any bits, else 0, for each format."""
    top, step, scale = _powers(i), _powers(-f), _powers(f)
    low, high, some = np.empty_like(i), np.empty_like(i), np.empty_like(i)
    for c in range(len(i)):
        some[c] = ONE if k[c] + i[c] + f[c] > ZERO else ZERO
        high[c] = some[c] * (top[c] - step[c])
        low[c] = some[c] * -k[c] * (high[c] if symmetric else top[c])
    return low, high, scale, step, top, some


@njit(nogil=True, cache=True)
def quantize(x: Any, bits: Any, symmetric: bool, mode: int, out: Any) -> None:
    """Write the values of ``x``, seen as (outer, formats, inner), into ``out``, in formats (k, i, f) of whole bits."""
    low, high, scale, step, _, _ = _formats(bits[0], bits[1], bits[2], symmetric)
    outer, formats, inner = x.shape
    for o in range(outer):
        if inner == 1:
            for c in range(formats):
                out[o, c, 0] = _fitted(x[o, c, 0], low[c], high[c], scale[c], step[c], mode)
        else:
            for c in range(formats):
                bottom, ceiling, up, down = low[c], high[c], scale[c], step[c]
                for s in range(inner):
                    out[o, c, s] = _fitted(x[o, c, s], bottom, ceiling, up, down, mode)


@njit(nogil=True, cache=True, fastmath={"reassoc", "nsz"})
def gradients(g: Any, x: Any, bits: Any, symmetric: bool, mode: int, dx: Any, di: Any, df: Any) -> None:
    """Write into dx, di and df what ``g`` becomes by the formulas of ``pquant.quantization.hgq``; without bits all values pass."""
    k = bits[0]
    low, high, scale, step, top, some = _formats(bits[0], bits[1], bits[2], symmetric)
    for c in range(len(some)):
        if some[c] == ZERO:
            low[c], high[c] = -np.inf, np.inf
    above, below, inside = np.zeros((3, len(k)))
    outer, formats, inner = x.shape
    for o in range(outer):
        if inner == 1:
            for c in range(formats):
                v, grad = x[o, c, 0], g[o, c, 0]
                q = _fitted(v, low[c], high[c], scale[c], step[c], mode) * some[c]
                over, under = v > high[c], v < low[c]
                dx[o, c, 0] = ZERO if over or under else grad
                above[c] += grad if over else ZERO
                below[c] += grad if under else ZERO
                inside[c] += ZERO if over or under else grad * (v - q)
        else:
            for c in range(formats):
                bottom, ceiling, up, down, there = low[c], high[c], scale[c], step[c], some[c]
                a = b = e = ZERO
                for s in range(inner):
                    v, grad = x[o, c, s], g[o, c, s]
                    q = _fitted(v, bottom, ceiling, up, down, mode) * there
                    over, under = v > ceiling, v < bottom
                    dx[o, c, s] = ZERO if over or under else grad
                    a += grad if over else ZERO
                    b += grad if under else ZERO
                    e += ZERO if over or under else grad * (v - q)
                above[c] += a
                below[c] += b
                inside[c] += e
    for c in range(len(k)):
        lower = k[c] * below[c]
        di[c] = LN2 * top[c] * (above[c] - lower)
        df[c] = LN2 * (inside[c] + step[c] * (above[c] - (lower if symmetric else 0.0)))

"""Loops over float32 values in memory, compiled by Numba, for :mod:`pquant.flat` and :mod:`pquant.quantization.kernels`.

Imported where the first is run. Tensors come as addresses, which take a tenth of the time that arrays take.
"""

import math
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

F = np.float32
ZERO, HALF, ONE, TWO, LN2 = F(0.0), F(0.5), F(1.0), F(2.0), F(math.log(2))
MODES = {"RND": 0, "RND_CONV": 1, "TRN": 2, "TRN_ZERO": 3, "RND_ZERO": 4, "RND_INF": 5, "RND_MIN_INF": 6}
RND, RND_CONV, TRN, TRN_ZERO, RND_ZERO, RND_INF = range(6)


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


@njit
def _fit_all(values: Any, low: Any, high: Any, scale: Any, step: Any, mode: int, results: Any) -> None:
    for n in range(len(values)):
        results[n] = _fitted(values[n], low, high, scale, step, mode)


@njit
def _fit(values: Any, low: float, high: float, scale: float, step: float, mode: int, results: Any) -> None:
    """Write values in one format; a loop that knows its mode takes half the time."""
    if mode == RND:
        _fit_all(values, F(low), F(high), F(scale), F(step), RND, results)
    elif mode == TRN:
        _fit_all(values, F(low), F(high), F(scale), F(step), TRN, results)
    elif mode == RND_CONV:
        _fit_all(values, F(low), F(high), F(scale), F(step), RND_CONV, results)
    else:
        _fit_all(values, F(low), F(high), F(scale), F(step), mode, results)


@njit
def _powers(exponents: Any) -> Any:
    """Return 2^n for whole n from -126 to 127, made from its bits."""
    n = np.empty(len(exponents), np.int32)
    for c in range(len(exponents)):
        n[c] = (np.int32(_clip(exponents[c], F(-126), F(127))) + np.int32(127)) << np.int32(23)
    return n.view(np.float32)


@njit
def _formats(k: Any, i: Any, f: Any, symmetric: bool) -> tuple[Any, Any, Any, Any, Any, Any]:
    """Return lowest and highest value, 2^f, 2^-f, 2^i, and 1 where there are any bits, else 0, for each format; i and f are rounded first."""
    i, f = np.rint(i), np.rint(f)
    top, step, scale = _powers(i), _powers(-f), _powers(f)
    low, high, some = np.empty_like(i), np.empty_like(i), np.empty_like(i)
    for c in range(len(i)):
        some[c] = ONE if k[c] + i[c] + f[c] > ZERO else ZERO
        high[c] = some[c] * (top[c] - step[c])
        low[c] = some[c] * -k[c] * (high[c] if symmetric else top[c])
    return low, high, scale, step, top, some


@njit(nogil=True, cache=True)
def quantize(shape: Any, given: Any, symmetric: bool, mode: int, result: int) -> None:
    """Write values seen in ``shape`` (outer, formats, inner) to ``result`` in their formats, given x, k, i, f."""
    outer, formats, inner = shape
    x, out = _array(given[0], shape), _array(result, shape)
    k, i, f = _array(given[1], (formats,)), _array(given[2], (formats,)), _array(given[3], (formats,))
    low, high, scale, step, _, _ = _formats(k, i, f, symmetric)
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
def gradients(shape: Any, given: Any, symmetric: bool, mode: int, results: Any) -> None:
    """Write dx, di and df to ``results`` by the formulas of ``pquant.quantization.hgq``, given g, x, k, i, f; without bits all values pass."""
    outer, formats, inner = shape
    g, x, dx = _array(given[0], shape), _array(given[1], shape), _array(results[0], shape)
    k, i, f = _array(given[2], (formats,)), _array(given[3], (formats,)), _array(given[4], (formats,))
    di, df = _array(results[1], (formats,)), _array(results[2], (formats,))
    low, high, scale, step, top, some = _formats(k, i, f, symmetric)
    for c in range(len(some)):
        if some[c] == ZERO:
            low[c], high[c] = -np.inf, np.inf
    above, below, inside = np.zeros((3, len(k)))
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


@njit(nogil=True, cache=True)
def snapped(x: int, size: int, low: float, high: float, scale: float, step: float, mode: int, out: int) -> None:
    """Write values, brought into [low, high] and onto a grid, to ``out``."""
    _fit(_array(x, (size,)), low, high, scale, step, mode, _array(out, (size,)))


@njit(nogil=True, cache=True)
def step_mask(weight: int, threshold: int, size: int, out: int) -> None:
    """Write W 1[|W| > t] to ``out``."""
    w, t, results = _array(weight, (size,)), _array(threshold, (size,)), _array(out, (size,))
    for n in range(size):
        results[n] = w[n] * (ONE if abs(w[n]) - t[n] > ZERO else ZERO)


@njit(nogil=True, cache=True)
def step_mask_slopes(grad: int, weight: int, threshold: int, size: int, dw: int, dt: int) -> None:
    """Write the gradients of W and of t, one a weight, by the formulas of ``pquant.pruning.dst``."""
    g, w, t, of_weight, of_threshold = (
        _array(grad, (size,)),
        _array(weight, (size,)),
        _array(threshold, (size,)),
        _array(dw, (size,)),
        _array(dt, (size,)),
    )
    for n in range(size):
        magnitude = abs(w[n])
        distance = magnitude - t[n]
        falling = _clip(F(4.0) * abs(distance) - TWO, F(-np.inf), F(-0.4))
        falling = ZERO if abs(distance) > ONE else falling
        of_weight[n] = ((ONE if distance > ZERO else ZERO) - falling * magnitude) * g[n]
        of_threshold[n] = falling * g[n] * w[n]


@njit(nogil=True, cache=True)
def price(bits: Any, signs: Any, places: Any, counts: Any, masks: Any, rates: int, paid: int, results: Any) -> None:
    """Write the price of bit widths and its slope by width, 0 where there are no bits, as ``pquant.quantization.price`` counts them.

    ``bits`` holds the addresses of all i, those of all f and how many each has, ``masks`` the address and length of the weights' mask, ``rates`` is
    the address of beta and gamma, ``results`` are those of the value and the slope.
    """
    i_at, f_at, sizes = bits
    weight_at, data_at = places
    total = sizes.sum()
    table, slope, rate, kept = np.empty(total + 2, np.float32), _array(results[1], (total,)), _array(rates, (2,)), _array(masks[0], (masks[1],))
    at = 0
    for n in range(len(sizes)):
        i, f = _array(i_at[n], (sizes[n],)), _array(f_at[n], (sizes[n],))
        for c in range(sizes[n]):
            width = np.rint(i[c]) + np.rint(f[c]) + signs[n]
            table[at + c] = ZERO if width < ZERO else width
        at += sizes[n]
    table[total], table[total + 1] = ONE, F(32.0)
    slope[:] = ZERO
    cost = 0.0
    for n in range(len(counts)):
        each = counts[n] * rate[0]
        if n < masks[1]:
            each *= kept[n]
        weight, data = table[weight_at[n]], table[data_at[n]]
        of_weight, of_data = each * data, each * weight
        cost += weight * of_weight
        if weight_at[n] < total:
            slope[weight_at[n]] += of_weight
        if data_at[n] < total:
            slope[data_at[n]] += of_data
    width_sum = 0.0
    for n in range(paid):
        width_sum += table[n]
        slope[n] += rate[1]
    for n in range(total):
        if table[n] <= ZERO:
            slope[n] = ZERO
    _array(results[0], (1,))[0] = cost + rate[1] * width_sum


@njit(nogil=True, cache=True)
def snapped_and_passing(x: int, size: int, format: Any, below: float, above: float, out: Any) -> None:
    """Write values, brought into a format (low, high, scale, step, mode), and in bytes whether they lie between two others, to ``out``."""
    low, high, scale, step, mode = format
    values, passes, under, over = _array(x, (size,)), carray(_bytes(out[1]), (size,)), F(below), F(above)
    _fit(values, low, high, scale, step, mode, _array(out[0], (size,)))
    for n in range(size):
        passes[n] = (values[n] > under) & (values[n] < over)


@njit(nogil=True, cache=True)
def masked(grad: int, passes: int, size: int, out: int) -> None:
    """Write values to ``out`` where a byte is 1, else 0."""
    values, mask, results = _array(grad, (size,)), carray(_bytes(passes), (size,)), _array(out, (size,))
    for n in range(size):
        results[n] = values[n] if mask[n] else ZERO


@njit(nogil=True, cache=True)
def formats(count: int, given: Any, symmetric: bool, table: int) -> None:
    """Write lowest and highest value, 2^f and 2^-f of formats to the four rows of ``table``, given k, i, f."""
    k, i, f = _array(given[0], (count,)), _array(given[1], (count,)), _array(given[2], (count,))
    rows = _array(table, (4, count))
    low, high, scale, step, _, _ = _formats(k, i, f, symmetric)
    rows[0], rows[1], rows[2], rows[3] = low, high, scale, step


@njit
def _snapped_rows(values: Any, rows: Any, mode: int, results: Any) -> None:
    for o in range(values.shape[0]):
        for c in range(values.shape[1]):
            results[o, c] = _fitted(values[o, c], rows[0, c], rows[1, c], rows[2, c], rows[3, c], mode)


@njit(nogil=True, cache=True)
def snapped_each(shape: Any, x: int, table: int, mode: int, out: int) -> None:
    """Write values seen in ``shape`` (outer, formats, inner) to ``out`` in the formats of a table."""
    outer, count, inner = shape
    rows = _array(table, (4, count))
    if inner == 1:
        values, results = _array(x, (outer, count)), _array(out, (outer, count))
        if mode == RND:
            _snapped_rows(values, rows, RND, results)
        else:
            _snapped_rows(values, rows, mode, results)
    else:
        spread, spread_results = _array(x, shape), _array(out, shape)
        for o in range(outer):
            for c in range(count):
                low, high, scale, step = rows[0, c], rows[1, c], rows[2, c], rows[3, c]
                for s in range(inner):
                    spread_results[o, c, s] = _fitted(spread[o, c, s], low, high, scale, step, mode)

"""Loops of quantizers and of the price of bits over memory; see :mod:`pquant.loops`."""

import math
from typing import Any

import numpy as np
from numba import carray, njit

from pquant.loops import HALF, ONE, TWO, ZERO, F, _array, _bytes, _clip
from pquant.quantization.quantizer import FLOAT_BITS

LN2 = F(math.log(2))
RND, RND_CONV, TRN, TRN_ZERO, RND_ZERO, RND_INF = range(6)
LONGEST_SUM = 4096
"""Values of one format that are added up in float32 at most."""
ROWS = 256
"""Rows whose values are added up in float32 before they are in float64."""


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


@njit
def _quantize(x: Any, rows: Any, mode: int, out: Any) -> None:
    low, high, scale, step = rows
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


@njit
def _quantized(x: Any, k: Any, i: Any, f: Any, symmetric: bool, mode: int, out: Any) -> None:
    low, high, scale, step, _, _ = _formats(k, i, f, symmetric)
    if mode == RND:
        _quantize(x, (low, high, scale, step), RND, out)
    else:
        _quantize(x, (low, high, scale, step), mode, out)


@njit(nogil=True, cache=True)
def quantize(shape: Any, given: Any, symmetric: bool, mode: int, result: int) -> None:
    """Write values seen in ``shape`` (outer, formats, inner) to ``result`` in their formats, given x, k, i, f."""
    formats = shape[1]
    k, i, f = _array(given[1], (formats,)), _array(given[2], (formats,)), _array(given[3], (formats,))
    _quantized(_array(given[0], shape), k, i, f, symmetric, mode, _array(result, shape))


@njit
def _seen(count: int, repeats: int) -> tuple[int, int, int]:
    """Return the shape (outer, formats, inner) of values in rows; those of one format are added up in parts."""
    if count != 1:
        return 1, count, repeats
    inner = math.gcd(repeats, LONGEST_SUM)
    return repeats // inner, 1, inner


@njit
def _each(parts: Any, sizes: Any) -> Any:
    """Return where the values of each tensor lie, of which some lie end to end in one part; ``parts`` are addresses and lengths."""
    where, (begins, lengths), part, at = np.empty_like(sizes), parts, 0, 0
    for n in range(len(sizes)):
        while at == lengths[part] and sizes[n] > 0:
            part, at = part + 1, 0
        where[n] = begins[part] + 4 * at
        at += sizes[n]
    return where


@njit(nogil=True, cache=True)
def quantize_in_rows(parts: Any, bits: Any, counts: Any, repeats: Any, modes: Any, result: int) -> None:
    """Write the values of several tensors to ``result``, end to end, in formats that come in rows.

    ``parts`` are the addresses and lengths of what holds the values, one tensor or more, ``bits`` the addresses of i and f of each tensor, ``modes``
    the sign, whether it is SAT_SYM, and how to round.
    """
    (sign, symmetric, mode), (i_at, f_at), at, sizes = modes, bits, 0, counts * repeats
    where, out, k = _each(parts, sizes), _array(result, (sizes.sum(),)), np.full(counts.max(), F(sign))
    for n in range(len(counts)):
        shape, end, formats = _seen(counts[n], repeats[n]), at + sizes[n], (counts[n],)
        i, f = _array(i_at[n], formats), _array(f_at[n], formats)
        _quantized(_array(where[n], shape), k[: counts[n]], i, f, symmetric, mode, out[at:end].reshape(shape))
        at = end


@njit(fastmath={"reassoc", "nsz"})
def _slopes(g: Any, x: Any, rows: Any, mode: int, dx: Any, sums: Any) -> None:
    """Write dx, and add the gradient above, below and inside the range of each format to ``sums``."""
    low, high, scale, step, some = rows
    outer, formats, inner = x.shape
    above, below, inside = sums
    parts = np.zeros((3, formats), np.float32)
    a_row, b_row, e_row = parts
    for o in range(outer):
        if inner == 1:
            for c in range(formats):
                v, grad = x[o, c, 0], g[o, c, 0]
                q = _fitted(v, low[c], high[c], scale[c], step[c], mode) * some[c]
                over, under = v > high[c], v < low[c]
                dx[o, c, 0] = ZERO if over or under else grad
                a_row[c] += grad if over else ZERO
                b_row[c] += grad if under else ZERO
                e_row[c] += ZERO if over or under else grad * (v - q)
            if o % ROWS == ROWS - 1 or o == outer - 1:
                sums += parts
                parts[:] = ZERO
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


@njit
def _gradients(g: Any, x: Any, bits: Any, symmetric: bool, mode: int, results: Any) -> None:
    (k, i, f), (dx, di, df), formats = bits, results, x.shape[1]
    low, high, scale, step, top, some = _formats(k, i, f, symmetric)
    for c in range(len(some)):
        if some[c] == ZERO:
            low[c], high[c] = -np.inf, np.inf
    sums = np.zeros((3, formats))
    if mode == RND:
        _slopes(g, x, (low, high, scale, step, some), RND, dx, sums)
    else:
        _slopes(g, x, (low, high, scale, step, some), mode, dx, sums)
    above, below, inside = sums
    for c in range(len(k)):
        lower = k[c] * below[c]
        di[c] = LN2 * top[c] * (above[c] - lower)
        df[c] = LN2 * (inside[c] + step[c] * (above[c] - (lower if symmetric else 0.0)))


@njit(nogil=True, cache=True)
def gradients(shape: Any, given: Any, symmetric: bool, mode: int, results: Any) -> None:
    """Write dx, di and df to ``results`` by the formulas of ``pquant.quantization.hgq``, given g, x, k, i, f; without bits all values pass."""
    g, x, dx, formats = _array(given[0], shape), _array(given[1], shape), _array(results[0], shape), (shape[1],)
    bits = _array(given[2], formats), _array(given[3], formats), _array(given[4], formats)
    _gradients(g, x, bits, symmetric, mode, (dx, _array(results[1], formats), _array(results[2], formats)))


@njit(nogil=True, cache=True)
def gradients_in_rows(grads: Any, parts: Any, bits: Any, counts: Any, repeats: Any, modes: Any, results: Any) -> None:
    """Write what :func:`gradients` does, each end to end, for what :func:`quantize_in_rows` has taken; ``grads`` lie in parts of their own."""
    (sign, symmetric, mode), (i_at, f_at), at, place, sizes = modes, bits, 0, 0, counts * repeats
    g_at, x_at, k = _each(grads, sizes), _each(parts, sizes), np.full(counts.max(), F(sign))
    dx, di, df = _array(results[0], (sizes.sum(),)), _array(results[1], (counts.sum(),)), _array(results[2], (counts.sum(),))
    for n in range(len(counts)):
        shape, formats, end, last = _seen(counts[n], repeats[n]), (counts[n],), at + sizes[n], place + counts[n]
        trained = k[: counts[n]], _array(i_at[n], formats), _array(f_at[n], formats)
        of_all = dx[at:end].reshape(shape), di[place:last], df[place:last]
        _gradients(_array(g_at[n], shape), _array(x_at[n], shape), trained, symmetric, mode, of_all)
        at, place = end, last


@njit(nogil=True, cache=True)
def snapped(x: int, size: int, low: float, high: float, scale: float, step: float, mode: int, out: int) -> None:
    """Write values, brought into [low, high] and onto a grid, to ``out``."""
    _fit(_array(x, (size,)), low, high, scale, step, mode, _array(out, (size,)))


@njit
def _pass(values: Any, under: Any, over: Any, passes: Any) -> None:
    for n in range(len(values)):
        passes[n] = 1 - ((values[n] <= under) | (values[n] >= over))


@njit
def _mask(values: Any, passes: Any, results: Any) -> None:
    for n in range(len(values)):
        results[n] = values[n] if passes[n] else ZERO


@njit(nogil=True, cache=True)
def snapped_and_passing(x: int, size: int, format: Any, below: float, above: float, out: Any) -> None:
    """Write values, brought into a format (low, high, scale, step, mode), and in bytes whether two others do not clip them, to ``out``."""
    low, high, scale, step, mode = format
    values, passes, under, over = _array(x, (size,)), carray(_bytes(out[1]), (size,)), F(below), F(above)
    _fit(values, low, high, scale, step, mode, _array(out[0], (size,)))
    _pass(values, under, over, passes)


@njit(nogil=True, cache=True)
def masked(grad: int, passes: int, size: int, out: int) -> None:
    """Write values to ``out`` where a byte is 1, else 0."""
    _mask(_array(grad, (size,)), carray(_bytes(passes), (size,)), _array(out, (size,)))


@njit(nogil=True, cache=True)
def snapped_end_to_end(addresses: Any, sizes: Any, format: Any, passing: Any, out: Any) -> None:
    """Write what :func:`snapped_and_passing` does, for values at several addresses, end to end."""
    (low, high, scale, step, mode), at, total = format, 0, sizes.sum()
    results, passes = _array(out[0], (total,)), carray(_bytes(out[1]), (total,))
    for n in range(len(sizes)):
        values, end = _array(addresses[n], (sizes[n],)), at + sizes[n]
        _fit(values, low, high, scale, step, mode, results[at:end])
        _pass(values, F(passing[0]), F(passing[1]), passes[at:end])
        at = end


@njit(nogil=True, cache=True)
def masked_end_to_end(addresses: Any, sizes: Any, passes: int, out: int) -> None:
    """Write what :func:`masked` does, for values at several addresses, end to end."""
    at, total = 0, sizes.sum()
    mask, results = carray(_bytes(passes), (total,)), _array(out, (total,))
    for n in range(len(sizes)):
        end = at + sizes[n]
        _mask(_array(addresses[n], (sizes[n],)), mask[at:end], results[at:end])
        at = end


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


@njit
def _width_table(bits: Any, signs: Any) -> Any:
    """Return the bit widths of all i and f, end to end, then 1 for what has no width and the bits of a float."""
    i_at, f_at, sizes = bits
    table, at = np.empty(sizes.sum() + 2, np.float32), 0
    for n in range(len(sizes)):
        i, f = _array(i_at[n], (sizes[n],)), _array(f_at[n], (sizes[n],))
        for c in range(sizes[n]):
            width = np.rint(i[c]) + np.rint(f[c]) + signs[n]
            table[at + c] = ZERO if width < ZERO else width
        at += sizes[n]
    table[at], table[at + 1] = ONE, F(FLOAT_BITS)
    return table


@njit(nogil=True, cache=True)
def price(bits: Any, signs: Any, places: Any, counts: Any, masks: Any, rates: int, paid: int, results: Any) -> None:
    """Write the price of bit widths and its slope by width, 0 where there are no bits, as ``pquant.quantization.price`` counts them.

    ``bits`` holds the addresses of all i, those of all f and how many each has, ``masks`` the address and length of the weights' mask, ``rates`` is
    the address of beta and gamma, ``results`` are those of the value and the slope.
    """
    weight_at, data_at = places
    table = _width_table(bits, signs)
    total = len(table) - 2
    slope, rate, kept = _array(results[1], (total,)), _array(rates, (2,)), _array(masks[0], (masks[1],))
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
    if rate[1] != ZERO:
        widths = 0.0
        for n in range(paid):
            widths += table[n]
            slope[n] += rate[1]
        cost += rate[1] * widths
    for n in range(total):
        if table[n] <= ZERO:
            slope[n] = ZERO
    _array(results[0], (1,))[0] = cost

"""Loops of quantizers and of the price of bits over memory; see :mod:`pquant.loops`."""

import math
from typing import Any

import numpy as np
from numba import carray, njit

from pquant.loops import HALF, ONE, TWO, ZERO, F, _array, _at, _bytes, _clip
from pquant.quantization.quantizer import FLOAT_BITS
from pquant.team import part, shared

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


@shared
def quantize(given: Any) -> None:
    """Write values to ``out`` in their formats, given how many, seen in which (outer, formats, inner), x, k, i, f, symmetric, mode and out."""
    outer, formats, inner = int(given[1]), int(given[2]), int(given[3])
    begin, end = part(outer)
    shape, first = (end - begin, formats, inner), begin * formats * inner
    k, i, f = _at(given, 5, (formats,)), _at(given, 6, (formats,)), _at(given, 7, (formats,))
    _quantized(_at(given, 4, shape, first), k, i, f, given[8] != 0, int(given[9]), _at(given, 10, shape, first))


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
def _slopes_by_row(g: Any, x: Any, rows: Any, mode: int, dx: Any, parts: Any) -> None:
    """Write dx, and to ``parts`` the sums of gradients above, below and inside the range of each format, a block of rows each."""
    low, high, scale, step, some = rows
    sums = np.zeros((3, len(low)), np.float32)
    a_row, b_row, e_row = sums
    for o in range(len(x)):
        for c in range(len(low)):
            v, grad = x[o, c, 0], g[o, c, 0]
            q = _fitted(v, low[c], high[c], scale[c], step[c], mode) * some[c]
            over, under = v > high[c], v < low[c]
            dx[o, c, 0] = ZERO if over or under else grad
            a_row[c] += grad if over else ZERO
            b_row[c] += grad if under else ZERO
            e_row[c] += ZERO if over or under else grad * (v - q)
        if o % ROWS == ROWS - 1 or o == len(x) - 1:
            for side in range(3):
                for c in range(len(low)):
                    parts[o // ROWS, side, c] = sums[side, c]
                    sums[side, c] = ZERO


@njit(fastmath={"reassoc", "nsz"})
def _slopes_by_format(g: Any, x: Any, rows: Any, mode: int, dx: Any, parts: Any) -> None:
    """Write what :func:`_slopes_by_row` does where a format has many values in a row, which are a block."""
    low, high, scale, step, some = rows
    for o in range(len(x)):
        for c in range(len(low)):
            bottom, ceiling, up, down, there = low[c], high[c], scale[c], step[c], some[c]
            a = b = e = ZERO
            for s in range(x.shape[2]):
                v, grad = x[o, c, s], g[o, c, s]
                q = _fitted(v, bottom, ceiling, up, down, mode) * there
                over, under = v > ceiling, v < bottom
                dx[o, c, s] = ZERO if over or under else grad
                a += grad if over else ZERO
                b += grad if under else ZERO
                e += ZERO if over or under else grad * (v - q)
            parts[o, 0, c], parts[o, 1, c], parts[o, 2, c] = a, b, e


@njit
def _blocks(outer: int, inner: int) -> tuple[int, int]:
    """Return how many blocks are added up by themselves, and of how many rows each."""
    each = ROWS if inner == 1 else 1
    return (outer + each - 1) // each, each


@njit
def _passing(k: Any, i: Any, f: Any, symmetric: bool) -> Any:
    """Return the rows of formats, of which those without bits let all values pass."""
    low, high, scale, step, _, some = _formats(k, i, f, symmetric)
    for c in range(len(some)):
        if some[c] == ZERO:
            low[c], high[c] = -np.inf, np.inf
    return low, high, scale, step, some


@njit
def _slopes(mode: int, g: Any, x: Any, rows: Any, dx: Any, parts: Any) -> None:
    if x.shape[2] == 1:
        if mode == RND:
            _slopes_by_row(g, x, rows, RND, dx, parts)
        else:
            _slopes_by_row(g, x, rows, mode, dx, parts)
    elif mode == RND:
        _slopes_by_format(g, x, rows, RND, dx, parts)
    else:
        _slopes_by_format(g, x, rows, mode, dx, parts)


@njit
def _settled(parts: Any, k: Any, i: Any, f: Any, symmetric: bool, di: Any, df: Any) -> None:
    """Write the slopes of bits, from the sums of blocks."""
    top, step = _powers(np.rint(i)), _powers(-np.rint(f))
    for c in range(len(k)):
        above = below = inside = 0.0
        for n in range(len(parts)):
            above += parts[n, 0, c]
            below += parts[n, 1, c]
            inside += parts[n, 2, c]
        lower = k[c] * below
        di[c] = LN2 * top[c] * (above - lower)
        df[c] = LN2 * (inside + step[c] * (above - (lower if symmetric else 0.0)))


@shared
def slopes(given: Any) -> None:
    """Write dx, and sums by blocks for :func:`settled`, given how many, (outer, formats, inner), g, x, k, i, f, symmetric, mode, dx, sums."""
    outer, formats, inner = int(given[1]), int(given[2]), int(given[3])
    blocks, each = _blocks(outer, inner)
    start, stop = part(blocks)
    begin, end = start * each, min(stop * each, outer)
    shape, first = (end - begin, formats, inner), begin * formats * inner
    rows = _passing(_at(given, 6, (formats,)), _at(given, 7, (formats,)), _at(given, 8, (formats,)), given[9] != 0)
    g, x, dx = _at(given, 4, shape, first), _at(given, 5, shape, first), _at(given, 11, shape, first)
    _slopes(int(given[10]), g, x, rows, dx, _at(given, 12, (stop - start, 3, formats), 3 * formats * start))


@njit(nogil=True, cache=True)
def settled(blocks: int, formats: int, given: Any, symmetric: bool, results: Any) -> None:
    """Write di and df to ``results`` by the formulas of ``pquant.quantization.hgq``, given k, i, f and the sums of blocks."""
    k, i, f = _array(given[0], (formats,)), _array(given[1], (formats,)), _array(given[2], (formats,))
    _settled(_array(given[3], (blocks, 3, formats)), k, i, f, symmetric, _array(results[0], (formats,)), _array(results[1], (formats,)))


@njit(nogil=True, cache=True)
def gradients_in_rows(grads: Any, parts: Any, bits: Any, counts: Any, repeats: Any, modes: Any, results: Any) -> None:
    """Write dx, di and df, each end to end, for what :func:`quantize_in_rows` has taken; ``grads`` lie in parts of their own."""
    (sign, symmetric, mode), (i_at, f_at), at, place, sizes = modes, bits, 0, 0, counts * repeats
    g_at, x_at, k = _each(grads, sizes), _each(parts, sizes), np.full(counts.max(), F(sign))
    dx, di, df = _array(results[0], (sizes.sum(),)), _array(results[1], (counts.sum(),)), _array(results[2], (counts.sum(),))
    for n in range(len(counts)):
        shape, formats, end, last = _seen(counts[n], repeats[n]), (counts[n],), at + sizes[n], place + counts[n]
        i, f = _array(i_at[n], formats), _array(f_at[n], formats)
        rows = _passing(k[: counts[n]], i, f, symmetric)
        sums = np.empty((_blocks(shape[0], shape[2])[0], 3, counts[n]), np.float32)
        _slopes(mode, _array(g_at[n], shape), _array(x_at[n], shape), rows, dx[at:end].reshape(shape), sums)
        _settled(sums, k[: counts[n]], i, f, symmetric, di[place:last], df[place:last])
        at, place = end, last


@shared
def snapped(given: Any) -> None:
    """Write values in one format to ``out``, given how many, low, high, scale, step, mode, x and out."""
    size = int(given[0])
    begin, end = part(size)
    _fit(_at(given, 6, size)[begin:end], given[1], given[2], given[3], given[4], int(given[5]), _at(given, 7, size)[begin:end])


@njit
def _pass(values: Any, under: Any, over: Any, passes: Any) -> None:
    for n in range(len(values)):
        passes[n] = 1 - ((values[n] <= under) | (values[n] >= over))


@njit
def _mask(values: Any, passes: Any, results: Any) -> None:
    for n in range(len(values)):
        results[n] = values[n] if passes[n] else ZERO


@shared
def snapped_and_passing(given: Any) -> None:
    """Write what :func:`snapped` does, and in bytes which values lie between two, given what that is given, the two, and where the bytes go."""
    size = int(given[0])
    begin, end = part(size)
    x, passes = _at(given, 6, size)[begin:end], carray(_bytes(int(given[10])), size)[begin:end]
    _fit(x, given[1], given[2], given[3], given[4], int(given[5]), _at(given, 7, size)[begin:end])
    _pass(x, F(given[8]), F(given[9]), passes)


@shared
def masked(given: Any) -> None:
    """Write values to ``out`` where a byte is 1, else 0, given how many, the values, the bytes and out."""
    size = int(given[0])
    begin, end = part(size)
    _mask(_at(given, 1, size)[begin:end], carray(_bytes(int(given[2])), size)[begin:end], _at(given, 3, size)[begin:end])


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


@njit
def _snapped_rows(values: Any, rows: Any, mode: int, results: Any) -> None:
    for o in range(values.shape[0]):
        for c in range(values.shape[1]):
            results[o, c] = _fitted(values[o, c], rows[0, c], rows[1, c], rows[2, c], rows[3, c], mode)


@njit
def _snapped_each(values: Any, rows: Any, mode: int, results: Any) -> None:
    outer, formats, inner = values.shape
    for o in range(outer):
        for c in range(formats):
            low, high, scale, step = rows[0, c], rows[1, c], rows[2, c], rows[3, c]
            for s in range(inner):
                results[o, c, s] = _fitted(values[o, c, s], low, high, scale, step, mode)


@shared
def snapped_each(given: Any) -> None:
    """Write values to ``out`` in formats that come as rows, given how many, seen in which (outer, formats, inner), x, rows, mode and out."""
    outer, formats, inner, mode = int(given[1]), int(given[2]), int(given[3]), int(given[6])
    rows, (begin, end) = _at(given, 5, (4, formats)), part(outer)
    shape, first = (end - begin, formats, inner), begin * formats * inner
    if inner == 1:
        x, out = _at(given, 4, shape[:2], first), _at(given, 7, shape[:2], first)
        if mode == RND:
            _snapped_rows(x, rows, RND, out)
        else:
            _snapped_rows(x, rows, mode, out)
    else:
        _snapped_each(_at(given, 4, shape, first), rows, mode, _at(given, 7, shape, first))


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

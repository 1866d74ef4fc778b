"""What pruners count and rank, of all layers in one loop over memory, compiled by Numba; see :mod:`pquant.loops`.

Layers come as the addresses and sizes of their float32 values, which count by magnitude. NaN ranks above infinity and compares false, as in torch.
"""

from typing import Any

import numpy as np
from numba import carray, njit

from pquant.loops import HALF, ONE, TWO, ZERO, F, _array, _bytes, _clip, gather  # noqa: F401

MAGNITUDE = np.int32(0x7FFFFFFF)
TINY = F(1e-12)


@njit(fastmath={"reassoc"})
def _sum(values: Any) -> Any:
    """Return the sum of all magnitudes."""
    total = 0.0
    for n in range(len(values)):
        total += abs(values[n])
    return F(total)


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
def ranked(addresses: Any, sizes: Any, ranks: Any, results: Any) -> None:
    """Write the rank-th smallest magnitude of each layer to ``results``, by address; for rank 0 what is below all."""
    for n in range(len(addresses)):
        _array(results[n], (1,))[0] = _ranked(_array(addresses[n], (sizes[n],)), ranks[n]) if ranks[n] else F(-np.inf)


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
def _measured(value: Any, kind: int) -> Any:
    """Return what ``pquant.pruning.group.MEASURES`` names."""
    return value if kind == 0 else abs(value) if kind == 1 else value * value


@njit(nogil=True, cache=True)
def above(addresses: Any, thresholds: Any, sizes: Any, repeats: Any, kind: int, out: int) -> None:
    """Write 1 where what is measured of values is above their threshold, each of which holds for ``repeats`` values in a row, else 0."""
    at, mask = 0, _array(out, ((sizes * repeats).sum(),))
    for n in range(len(addresses)):
        values, bounds = _array(addresses[n], (sizes[n], repeats[n])), _array(thresholds[n], (sizes[n],))
        for a in range(sizes[n]):
            for b in range(repeats[n]):
                mask[at + b] = ONE if _measured(values[a, b], kind) > bounds[a] else ZERO
            at += repeats[n]


@njit(nogil=True, cache=True)
def times_masks(x: int, masks: Any, sizes: Any, repeats: Any, out: int) -> None:
    """Write the values of all layers times their masks, in bytes of which each holds for ``repeats`` values in a row."""
    at, total = 0, (sizes * repeats).sum()
    values, results = _array(x, (total,)), _array(out, (total,))
    for n in range(len(masks)):
        mask = carray(_bytes(masks[n]), (sizes[n],))
        for a in range(sizes[n]):
            for b in range(repeats[n]):
                results[at + b] = values[at + b] * F(mask[a])
            at += repeats[n]


@njit(nogil=True, cache=True)
def negated(addresses: Any, sizes: Any, out: int) -> None:
    """Write the values of all layers with the other sign."""
    at, result = 0, _array(out, (sizes.sum(),))
    for n in range(len(addresses)):
        values = _array(addresses[n], (sizes[n],))
        for a in range(sizes[n]):
            result[at + a] = -values[a]
        at += sizes[n]


@njit(nogil=True, cache=True)
def sum_and_negate(x: int, size: int, factor: float, out: int) -> None:
    """Write the sum of factor * value, and -factor * value in place."""
    values, total = _array(x, (size,)), 0.0
    for n in range(size):
        one = values[n] * F(factor)
        total += one
        values[n] = -one
    _array(out, (1,))[0] = total


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


@njit(nogil=True, cache=True)
def scaled(addresses: Any, sizes: Any, factors: Any, out: int) -> None:
    """Write the values of each layer times its factor, which is an address too."""
    at, product = 0, _array(out, (sizes.sum(),))
    for n in range(len(addresses)):
        values, factor = _array(addresses[n], (sizes[n],)), _array(factors[n], (1,))[0]
        for a in range(sizes[n]):
            product[at + a] = values[a] * factor
        at += sizes[n]


@njit(nogil=True, cache=True)
def sum_and_slopes(x: int, sizes: Any, factors: Any, factor: float, out: int) -> None:
    """Write the sum of the sigmoids y of all layers times a factor, and in their place their slopes, factor * (1 - y) * y * factor of the layer."""
    at, y = 0, _array(x, (sizes.sum(),))
    _array(out, (1,))[0] = _sum(y) * F(factor)
    for n in range(len(sizes)):
        own = _array(factors[n], (1,))[0]
        for a in range(at, at + sizes[n]):
            y[a] = F(factor) * (ONE - y[a]) * y[a] * own
        at += sizes[n]


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
def constraints(shares: int, targets: Any, multipliers: Any, scales: Any, side: int, damping: float, slacks: bool, results: Any) -> None:
    """Write MDMM's loss and its slopes by each layer's share and multiplier; h is at least -lambda / damping with ``slacks``."""
    layers, total, half = len(targets), 0.0, F(damping / 2)
    share, slopes = _array(shares, (layers,)), _array(results[1], (2 * layers,))
    for n in range(layers):
        multiplier, h, through = _array(multipliers[n], (1,))[0], F(side) * (share[n] - targets[n]), ONE
        if slacks:
            slack = -multiplier / F(damping)
            through = HALF if h == slack else (ONE if h > slack else ZERO)
            h = max(h, slack)
        force, slope = scales[n] * h, multiplier + half * h
        total += force * slope
        by_h = force * half + slope * scales[n]
        slopes[n] = F(side) * by_h * through
        slopes[layers + n] = force - by_h * (ONE - through) / F(damping) if slacks else force
    _array(results[0], (1,))[0] = total


@njit(nogil=True, cache=True)
def lift(shares: int, targets: Any, multipliers: Any, side: int, damping: float, slacks: bool, kept_positive: bool, rate: float) -> None:
    """Raise each multiplier by rate * h, in place."""
    share = _array(shares, (len(targets),))
    for n in range(len(targets)):
        multiplier, h = _array(multipliers[n], (1,)), F(side) * (share[n] - targets[n])
        if slacks:
            h = max(h, -multiplier[0] / F(damping))
        multiplier[0] += h * F(rate)
        if kept_positive and multiplier[0] < ZERO:
            multiplier[0] = ZERO


@njit(nogil=True, cache=True)
def pulls(addresses: Any, sizes: Any, borders: Any, slopes: int, out: int) -> None:
    """Write the gradient of the sum of slope * (share of zeros), the slope of a share being that of -T_k(s) / sum(s); see MDMM."""
    at, slope, pull = 0, _array(slopes, (len(sizes),)), _array(out, (sizes.sum(),))
    for n in range(len(addresses)):
        values = _array(addresses[n], (sizes[n],))
        border = _array(borders[n], (1,))[0]
        force = -slope[n] / max(_sum(values), TINY)
        for a in range(sizes[n]):
            one = values[a]
            sign = ONE if one > ZERO else (-ONE if one < ZERO else ZERO)
            pull[at + a] = force * sign if abs(one) <= border else ZERO
        at += sizes[n]


@njit(nogil=True, cache=True)
def step_mask(weight: int, size: int, addresses: Any, counts: Any, repeats: Any, out: int) -> None:
    """Write W 1[|W| > t] to ``out``, the thresholds in rows."""
    at = 0
    w, results = _array(weight, (size,)), _array(out, (size,))
    for n in range(len(counts)):
        t = _array(addresses[n], (counts[n],))
        for a in range(counts[n]):
            for b in range(at, at + repeats[n]):
                results[b] = w[b] * (ONE if abs(w[b]) - t[a] > ZERO else ZERO)
            at += repeats[n]


@njit(nogil=True, cache=True)
def step_mask_slopes(grad: int, weight: int, size: int, addresses: Any, counts: Any, repeats: Any, total: int, out: Any) -> None:
    """Write the gradients of W and of t by the formulas of ``pquant.pruning.dst``."""
    at = place = 0
    g, w, of_weight, of_threshold = _array(grad, (size,)), _array(weight, (size,)), _array(out[0], (size,)), _array(out[1], (total,))
    for n in range(len(counts)):
        t = _array(addresses[n], (counts[n],))
        for a in range(counts[n]):
            sum_of_row = 0.0
            for b in range(at, at + repeats[n]):
                magnitude = abs(w[b])
                distance = magnitude - t[a]
                falling = _clip(F(4.0) * abs(distance) - TWO, F(-np.inf), F(-0.4))
                falling = ZERO if abs(distance) > ONE else falling
                of_weight[b] = ((ONE if distance > ZERO else ZERO) - falling * magnitude) * g[b]
                sum_of_row += falling * g[b] * w[b]
            of_threshold[place] = sum_of_row
            at += repeats[n]
            place += 1


@njit(nogil=True, cache=True)
def shrunk(weight: int, thresholds: int, counts: Any, repeats: Any, out: int) -> None:
    """Write sign(W) relu(|W| - t) to ``out``; the thresholds, end to end, hold for ``repeats`` weights in a row."""
    at, place, size = 0, 0, (counts * repeats).sum()
    w, t, results = _array(weight, (size,)), _array(thresholds, (counts.sum(),)), _array(out, (size,))
    for n in range(len(counts)):
        for _ in range(counts[n]):
            for b in range(at, at + repeats[n]):
                results[b] = w[b] - _clip(w[b], -t[place], t[place])
            at += repeats[n]
            place += 1


@njit(nogil=True, cache=True)
def shrunk_slopes(grad: int, weight: int, thresholds: int, counts: Any, repeats: Any, alphas: Any, results: Any) -> None:
    """Write the gradients of W and of s, t = sigmoid(s), by the formulas of ``pquant.pruning.autosparse``; each alpha lies at its address."""
    at, place, size = 0, 0, (counts * repeats).sum()
    g, w, t = _array(grad, (size,)), _array(weight, (size,)), _array(thresholds, (counts.sum(),))
    of_weight, of_logit = _array(results[0], (size,)), _array(results[1], (counts.sum(),))
    for n in range(len(counts)):
        alpha = _array(alphas[n], (1,))[0]
        for _ in range(counts[n]):
            total, threshold = 0.0, t[place]
            for b in range(at, at + repeats[n]):
                slope = g[b] if abs(w[b]) - threshold > ZERO else g[b] * alpha
                of_weight[b] = slope
                total += slope if w[b] > ZERO else (-slope if w[b] < ZERO else ZERO * slope)
            of_logit[place] = -F(total) * (ONE - threshold) * threshold
            at += repeats[n]
            place += 1


@njit(nogil=True, cache=True)
def near_border(weight: int, sizes: Any, borders: Any, taus: Any, out: int) -> None:
    """Write (W^2 - t^2) / tau of each layer; t^2 and tau lie at their addresses."""
    at, total = 0, sizes.sum()
    w, results = _array(weight, (total,)), _array(out, (total,))
    for n in range(len(sizes)):
        border, tau = _array(borders[n], (1,))[0], _array(taus[n], (1,))[0]
        for a in range(at, at + sizes[n]):
            results[a] = (w[a] * w[a] - border) / tau
        at += sizes[n]


@njit(nogil=True, cache=True)
def near_border_slopes(grad: int, weight: int, share: int, sizes: Any, taus: Any, out: int) -> None:
    """Write the gradients of W in m W by the formula of ``pquant.pruning.pdp``, given the masks m."""
    at, total = 0, sizes.sum()
    g, w, m, results = _array(grad, (total,)), _array(weight, (total,)), _array(share, (total,)), _array(out, (total,))
    for n in range(len(sizes)):
        tau = _array(taus[n], (1,))[0]
        for a in range(at, at + sizes[n]):
            results[a] = g[a] * m[a] + TWO * (g[a] * w[a] * (ONE - m[a]) * m[a] / tau) * w[a]
        at += sizes[n]


@njit(nogil=True, cache=True)
def weighted(weight: int, share: int, size: int, factor: float, out: int) -> None:
    """Write W times (share times factor)."""
    w, m, results = _array(weight, (size,)), _array(share, (size,)), _array(out, (size,))
    for n in range(size):
        results[n] = w[n] * (m[n] * F(factor))


@njit(nogil=True, cache=True)
def weighted_slopes(grad: int, weight: int, share: int, sizes: Any, factors: Any, results: Any) -> None:
    """Write the gradients of W and s in W c sigmoid(beta s), given the sigmoids, c, and where each beta lies."""
    at, total, (factor, betas) = 0, sizes.sum(), factors
    g, w, m = _array(grad, (total,)), _array(weight, (total,)), _array(share, (total,))
    of_weight, of_score = _array(results[0], (total,)), _array(results[1], (total,))
    for n in range(len(sizes)):
        beta = _array(betas[n], (1,))[0]
        for a in range(at, at + sizes[n]):
            of_weight[a] = g[a] * (m[a] * F(factor))
            of_score[a] = (g[a] * w[a] * F(factor)) * (ONE - m[a]) * m[a] * beta
        at += sizes[n]

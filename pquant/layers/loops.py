"""The loops of batch norm over memory; see :mod:`pquant.loops`."""

from typing import Any

import numpy as np
from numba import njit

from pquant.loops import ZERO, F, _array
from pquant.quantization.loops import _formats, _quantized

LEAST_BITS, SIGNIFICAND, EXPONENT = np.int32(-32), 23, np.int32(255)


@njit
def _by_mantissa(x: Any, kind: Any, q: Any, passes: Any) -> None:
    """Write what ``pquant.quantization.quantizer.MantissaQuantizer`` gives, and 1 for values that it does not clip, else 0.

    ``kind`` are the sign, the significant bits, how to round, whether it is SAT_SYM, and whether a negative power of two takes a bit less.
    """
    sign, significant, mode, symmetric, saves_a_bit = kind
    bits, k, i = x.view(np.int32), np.full_like(x, F(sign)), np.empty_like(x)
    for c in range(len(x)):
        exponent = (bits[c] >> SIGNIFICAND) & EXPONENT
        n = exponent - 126 if exponent != EXPONENT and x[c] != ZERO else 0
        power_of_two = bits[c] & ((1 << SIGNIFICAND) - 1) == 0
        if saves_a_bit and power_of_two and x[c] < ZERO:
            n -= 1
        i[c] = F(max(n, LEAST_BITS))
    f = F(significant) - i
    low, high, _, _, _, some = _formats(k, i, f, symmetric)
    shape = (1, len(x), 1)
    _quantized(x.reshape(shape), k, i, f, symmetric, mode, q.reshape(shape))
    for c in range(len(x)):
        passes[c] = ZERO if x[c] < low[c] or x[c] > high[c] else some[c]


@njit(nogil=True, cache=True)
def folded(given: Any, channels: int, kinds: Any, out: int) -> None:
    """Write gamma and beta as moved by the quantization of scale and shift, and in four more rows what :func:`folded_slopes` needs.

    ``given`` are the addresses of gamma, beta, running mean and deviation, ``kinds`` those of the weight's and the bias's quantizer.
    """
    one = (channels,)
    gamma, beta, mean, sigma = _array(given[0], one), _array(given[1], one), _array(given[2], one), _array(given[3], one)
    rows = _array(out, (6, channels))
    q = np.empty_like(gamma)
    _by_mantissa(gamma / sigma, kinds[0], q, rows[2])
    shift = beta - mean * q
    _by_mantissa(shift, kinds[1], rows[1], rows[5])
    for c in range(channels):
        rows[0, c] = q[c] * sigma[c]
        rows[1, c] += mean[c] * q[c]
        rows[3, c], rows[4, c] = sigma[c], mean[c]


@njit(nogil=True, cache=True)
def folded_slopes(grads: Any, channels: int, kept: int, out: int) -> None:
    """Write the gradients of gamma and beta, straight through the quantizers, from those of what :func:`folded` gives."""
    of_gamma, of_beta = _array(grads[0], (channels,)), _array(grads[1], (channels,))
    rows, results = _array(kept, (6, channels)), _array(out, (2, channels))
    for c in range(channels):
        passes, sigma, mean, shift_passes = rows[2, c], rows[3, c], rows[4, c], rows[5, c]
        through = of_beta[c] * shift_passes
        results[0, c] = (of_gamma[c] * sigma + (of_beta[c] * mean - through * mean)) * passes / sigma
        results[1, c] = through

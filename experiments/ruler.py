"""The EBOPs of a dense network from its numbers alone, counted as ``pquant.ebops`` does, so that models of all tools are measured alike."""

from collections.abc import Iterable
from typing import Any

import numpy as np

MANTISSA_BITS = 24
Array = np.ndarray[Any, Any]


def significant_bits(values: Array) -> Array:
    """Return, for each value as float32, the number of bits from its highest to its lowest set bit; 0 for 0."""
    mantissa = (np.frexp(np.abs(np.asarray(values, np.float32)))[0] * 2**MANTISSA_BITS).astype(np.int64)
    lowest = np.log2(np.maximum(mantissa & -mantissa, 1))
    return np.where(mantissa == 0, 0, MANTISSA_BITS - lowest)


def dense_ebops(layers: Iterable[tuple[Array, Array, Array]]) -> float:
    """Return the EBOPs of dense layers.

    Each is its weight (inputs, outputs) and bias (outputs,), as quantized and pruned in the end, and the bits of its inputs, sign included: (inputs,)
    or one number. A constant costs the bits from its highest to its lowest set one, times those of its input for a weight.
    """
    each = [(np.broadcast_to(bits, weight.shape[0]) @ significant_bits(weight)).sum() + significant_bits(bias).sum() for weight, bias, bits in layers]
    return float(sum(each))


def zeros(weights: Iterable[Array]) -> float:
    """Return the fraction of all weights that is 0."""
    weights = list(weights)
    return 1 - sum(np.count_nonzero(weight) for weight in weights) / sum(weight.size for weight in weights)

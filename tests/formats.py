"""Formats that many tests share."""

from pquant.quantization import Quantization

EIGHT_BITS = Quantization(
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
    default_data_keep_negatives=True,
    default_data_integer_bits=3,
    default_data_fractional_bits=4,
)

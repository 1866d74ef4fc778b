"""Formats that many tests share."""

from typing import Any

from pquant.quantization import Quantization

EIGHT_BITS = Quantization(
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=7,
    default_data_keep_negatives=True,
    default_data_integer_bits=3,
    default_data_fractional_bits=4,
)
SIX_BITS: dict[str, Any] = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 3,
    "default_weight_keep_negatives": True,
    "default_weight_integer_bits": 0,
    "default_weight_fractional_bits": 5,
}
SEVEN_BITS: dict[str, Any] = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 4,
    "default_weight_keep_negatives": True,
    "default_weight_integer_bits": 0,
    "default_weight_fractional_bits": 6,
}

"""Fixed-point quantization: arithmetic, quantizers, and the settings that choose the format of each tensor."""

from pquant.quantization.fixed_point import fixed_point
from pquant.quantization.quantization import LayerFormats, Quantization
from pquant.quantization.quantizer import FixedPointQuantizer, FoldedQuantizer, NoQuantizer, Quantizer, TensorFormat

__all__ = [
    "FoldedQuantizer",
    "FixedPointQuantizer",
    "LayerFormats",
    "NoQuantizer",
    "Quantization",
    "Quantizer",
    "TensorFormat",
    "fixed_point",
]

"""Layers that prune and quantize, and the conversion of models to them."""

from pquant.layers.activation import PQActivation
from pquant.layers.base import CompressedLayer, QuantizedLayer, pruned_layers, weight_layers
from pquant.layers.conv import PQConv1d, PQConv2d, PQConv3d
from pquant.layers.convert import calibrate, compress, finalize, unconverted
from pquant.layers.dense import PQDense
from pquant.layers.norm import PQBatchNorm1d, PQBatchNorm2d, PQBatchNorm3d
from pquant.layers.pool import PQAvgPool1d, PQAvgPool2d, PQAvgPool3d

__all__ = [
    "CompressedLayer",
    "PQActivation",
    "PQAvgPool1d",
    "PQAvgPool2d",
    "PQAvgPool3d",
    "PQBatchNorm1d",
    "PQBatchNorm2d",
    "PQBatchNorm3d",
    "PQConv1d",
    "PQConv2d",
    "PQConv3d",
    "PQDense",
    "QuantizedLayer",
    "calibrate",
    "compress",
    "finalize",
    "pruned_layers",
    "unconverted",
    "weight_layers",
]

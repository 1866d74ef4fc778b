"""Layers that prune and quantize, and the conversion of models to them."""

from pquant.layers.activation import PQActivation
from pquant.layers.attention import PQMultiheadAttention, ScaledDotProductAttention
from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.layers.calibrate import calibrate
from pquant.layers.constant import Constant, PQConstant
from pquant.layers.conv import PQConv1d, PQConv2d, PQConv3d, PQConvTranspose1d, PQConvTranspose2d, PQConvTranspose3d
from pquant.layers.convert import compress
from pquant.layers.coverage import coverage
from pquant.layers.dense import PQDense
from pquant.layers.embedding import PQEmbedding
from pquant.layers.finalize import finalize
from pquant.layers.layer_norm import PQGroupNorm, PQInstanceNorm1d, PQInstanceNorm2d, PQInstanceNorm3d, PQLayerNorm, PQRMSNorm
from pquant.layers.merge import Mean, Merge, PQMean, PQMerge, PQScale, Scale
from pquant.layers.norm import PQBatchNorm1d, PQBatchNorm2d, PQBatchNorm3d
from pquant.layers.pool import PQAvgPool1d, PQAvgPool2d, PQAvgPool3d, PQMaxPool1d, PQMaxPool2d, PQMaxPool3d
from pquant.layers.queries import pruned_layers, weight_layers
from pquant.layers.recurrent import PQGRU, PQLSTM, PQRNN, PQGRUCell, PQLSTMCell, PQRNNCell
from pquant.layers.softmax import PQSoftmax, ScaledSoftmax
from pquant.layers.unconverted import unconverted

__all__ = [
    "CompressedLayer",
    "Constant",
    "Mean",
    "Merge",
    "PQActivation",
    "PQAvgPool1d",
    "PQAvgPool2d",
    "PQAvgPool3d",
    "PQBatchNorm1d",
    "PQBatchNorm2d",
    "PQBatchNorm3d",
    "PQConstant",
    "PQConv1d",
    "PQConv2d",
    "PQConv3d",
    "PQConvTranspose1d",
    "PQConvTranspose2d",
    "PQConvTranspose3d",
    "PQDense",
    "PQEmbedding",
    "PQGRU",
    "PQGRUCell",
    "PQGroupNorm",
    "PQInstanceNorm1d",
    "PQInstanceNorm2d",
    "PQInstanceNorm3d",
    "PQLSTM",
    "PQLSTMCell",
    "PQLayerNorm",
    "PQMaxPool1d",
    "PQMaxPool2d",
    "PQMaxPool3d",
    "PQMean",
    "PQMerge",
    "PQMultiheadAttention",
    "PQRMSNorm",
    "PQRNN",
    "PQRNNCell",
    "PQScale",
    "PQSoftmax",
    "QuantizedLayer",
    "Scale",
    "ScaledDotProductAttention",
    "ScaledSoftmax",
    "calibrate",
    "compress",
    "coverage",
    "finalize",
    "pruned_layers",
    "unconverted",
    "weight_layers",
]

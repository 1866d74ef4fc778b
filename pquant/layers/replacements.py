"""The table of torch layers and their quantized replacements, and the replacement of modules in a model."""

import operator
from typing import Any

from torch import nn

from pquant.layers.activation import KINDS, PQActivation
from pquant.layers.base import QuantizedLayer
from pquant.layers.constant import Constant, PQConstant
from pquant.layers.conv import PQConv1d, PQConv2d, PQConv3d, PQConvTranspose1d, PQConvTranspose2d, PQConvTranspose3d
from pquant.layers.dense import PQDense
from pquant.layers.embedding import PQEmbedding
from pquant.layers.layer_norm import PQGroupNorm, PQInstanceNorm1d, PQInstanceNorm2d, PQInstanceNorm3d, PQLayerNorm, PQRMSNorm
from pquant.layers.merge import Mean, Merge, PQMean, PQMerge, PQScale, Scale
from pquant.layers.norm import PQBatchNorm1d, PQBatchNorm2d, PQBatchNorm3d
from pquant.layers.pool import PQAvgPool1d, PQAvgPool2d, PQAvgPool3d, PQMaxPool1d, PQMaxPool2d, PQMaxPool3d
from pquant.layers.softmax import PQSoftmax, ScaledSoftmax

# KEEPING only move or select values; PASSING are these and the modules that do nothing in evaluation.
KEEPING = (nn.Identity, nn.Sequential, nn.Flatten, nn.Unflatten, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.PixelShuffle)
PASSING = (*KEEPING, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
REPLACEMENTS: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Linear: PQDense,
    nn.Conv1d: PQConv1d,
    nn.Conv2d: PQConv2d,
    nn.Conv3d: PQConv3d,
    nn.ConvTranspose1d: PQConvTranspose1d,
    nn.ConvTranspose2d: PQConvTranspose2d,
    nn.ConvTranspose3d: PQConvTranspose3d,
    nn.Embedding: PQEmbedding,
    nn.AvgPool1d: PQAvgPool1d,
    nn.AvgPool2d: PQAvgPool2d,
    nn.AvgPool3d: PQAvgPool3d,
    nn.MaxPool1d: PQMaxPool1d,
    nn.MaxPool2d: PQMaxPool2d,
    nn.MaxPool3d: PQMaxPool3d,
    nn.BatchNorm1d: PQBatchNorm1d,
    nn.BatchNorm2d: PQBatchNorm2d,
    nn.BatchNorm3d: PQBatchNorm3d,
    nn.LayerNorm: PQLayerNorm,
    nn.RMSNorm: PQRMSNorm,
    nn.GroupNorm: PQGroupNorm,
    nn.InstanceNorm1d: PQInstanceNorm1d,
    nn.InstanceNorm2d: PQInstanceNorm2d,
    nn.InstanceNorm3d: PQInstanceNorm3d,
    nn.Softmax: PQSoftmax,
    ScaledSoftmax: PQSoftmax,
    Merge: PQMerge,
    Scale: PQScale,
    Mean: PQMean,
    Constant: PQConstant,
    **dict.fromkeys(KINDS.values(), PQActivation),
}


def replace_modules(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> nn.Module:
    """Replace modules in ``model``, in place, and return it, or its replacement where ``model`` itself is replaced.

    Modules are found in attributes of other modules, and there in nested lists, tuples, sets and dictionaries. A replacement takes over the hooks.
    """
    for old, new in replaced.items():
        vars(new).update({name: value for name, value in vars(old).items() if "hook" in name and "state_dict" not in name})
    seen: set[int] = set()

    def exchanged(value: Any) -> Any:
        if isinstance(value, nn.Module):
            value = replaced.get(value, value)
            exchanged(vars(value))
        elif isinstance(value, (tuple, frozenset)):
            items = [exchanged(item) for item in value]
            if any(map(operator.is_not, items, value)):
                return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        elif isinstance(value, (list, set, dict)) and id(value) not in seen:
            seen.add(id(value))
            before = list(value.items() if isinstance(value, dict) else value)
            items = [exchanged(item) for item in before]
            if any(map(operator.is_not, items, before)):
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(items)
        return value

    return exchanged(model)

"""Conversion of a compressed model to a finalized one."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from pquant.errors import DivergedError
from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.layers.embedding import PQEmbedding
from pquant.layers.queries import trained_quantizers
from pquant.layers.replacements import replace_modules


def finalize(model: nn.Module) -> nn.Module:
    """Return a finalized copy of ``model`` in evaluation mode, with masks and quantized values written into the weights.

    ``model`` is left untouched. The copy computes, bit for bit, the output of ``model`` in evaluation mode.

    Raises:
        DivergedError: trained bits that are not finite.
    """
    model = copy.deepcopy(model)
    model.eval()
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    _check_bits(model)
    parameters = {layer: (layer.weight, getattr(layer, "bias", None)) for layer in layers if isinstance(layer, (CompressedLayer, PQEmbedding))}
    before = [dict(layer.named_children()) for layer in layers]
    final: dict[nn.Module, nn.Module] = {layer: layer.finalized() for layer in layers}
    _tie(parameters)
    became = {
        id(old): getattr(layer, place) for layer, olds in zip(layers, before, strict=True) for place, old in olds.items() if hasattr(layer, place)
    }
    for layer in final.values():
        if isinstance(layer, QuantizedLayer):
            layer.sources = {place: became.get(id(source), source) for place, source in layer.sources.items()}
    model = replace_modules(model, final)
    model.eval()
    return model


def _check_bits(model: nn.Module) -> None:
    for quantizer, place in trained_quantizers(model).items():
        if not all(bool(parameter.isfinite().all()) for parameter in quantizer.parameters()):
            raise DivergedError(f"{place}: trained bits are not finite; lower optimizer.lr or hgq_lr")


def _tie(before: Mapping[CompressedLayer | PQEmbedding, tuple[Tensor, Tensor | None]]) -> None:
    """Let finalized layers share the weights and biases that they shared before, where the finalized values are equal."""
    shared: dict[int, list[Tensor]] = {}
    for layer, (weight, bias) in before.items():
        for name, old in (("weight", weight), ("bias", bias)):
            if old is not None:
                new = getattr(layer, name)
                known = shared.setdefault(id(old), [])
                setattr(layer, name, next((one for one in known if torch.equal(one, new)), new))
                known.append(getattr(layer, name))

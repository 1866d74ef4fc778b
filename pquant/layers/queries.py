"""The layers and quantizers of a compressed model, selected by what they do."""

from torch import nn

from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.pruning.method import NoPruner
from pquant.quantization.budget import EbopsBudget
from pquant.quantization.hgq import HGQQuantizer


def compressed_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return all compressed layers of the model by dotted name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, CompressedLayer)}


def weight_owners(model: nn.Module) -> dict[str, str]:
    """Map the dotted name of each compressed layer to that of the first layer with the same weight."""
    weights = {name: layer.weight for name, layer in compressed_layers(model).items()}
    first: dict[int, str] = {}
    return {name: first.setdefault(id(weight), name) for name, weight in weights.items()}


def weight_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return the compressed layers of the model by dotted name. Of layers that share a weight, only the first is included."""
    owners = weight_owners(model)
    return {name: layer for name, layer in compressed_layers(model).items() if owners[name] == name}


def pruned_layers(model: nn.Module) -> dict[str, CompressedLayer]:
    """Return the layers that have a pruner, by dotted name. Of layers that share a weight, only the first is included."""
    return {name: layer for name, layer in weight_layers(model).items() if not isinstance(layer.pruner, NoPruner)}


def counted_layers(model: nn.Module) -> list[QuantizedLayer]:
    """Return the layers whose EBOPs are part of the loss."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    return [layer for layer in layers if layer.regularization is not None and layer.regularizes_ebops()]


def ebops_budget(model: nn.Module) -> EbopsBudget | None:
    """Return the budget that the EBOPs of a model's trained bits follow, that of its first counted layer; None where there is none."""
    return next((layer.regularization.budget for layer in counted_layers(model)), None)  # type: ignore[union-attr]


def trained_quantizers(model: nn.Module) -> dict[HGQQuantizer, str]:
    """Return the quantizers whose bits are trained, each with its place in words: the first layer that has it, and the tensor."""
    places: dict[HGQQuantizer, str] = {}
    for layer in model.modules():
        for place, child in layer.named_children() if isinstance(layer, QuantizedLayer) else ():
            if isinstance(child, HGQQuantizer):
                places.setdefault(child, f"layer '{layer.name}', {place.replace('_', ' ')}")
    return places

"""Layers that share a weight: they share its mask and bits, so their settings must agree."""

import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.layers.base import CompressedLayer
from pquant.layers.queries import compressed_layers, weight_layers, weight_owners
from pquant.pruning.method import NoPruner, PruningMethod


def share_weights(model: nn.Module) -> None:
    """Let layers that share a weight use the pruner and weight quantizer of the first of them.

    Raises:
        ConfigError: settings that differ between two such layers, or layers that cannot share a mask or bits.
    """
    layers = compressed_layers(model)
    for name, owner in weight_owners(model).items():
        if name != owner:
            _check_alike(layers[owner], layers[name])
            layers[name].share(layers[owner])


def _check_alike(one: CompressedLayer, other: CompressedLayer) -> None:
    """Raise a ConfigError if the settings of two layers differ, or if pruner and quantizer would see the weight in different axis orders."""
    names = f"layers '{one.name}' and '{other.name}' share a weight"
    if one.prunable != other.prunable:
        raise ConfigError(f"{names}, and disable_pruning_for_layers names only one of them: name both or neither")
    first, second = (layer.quantization.formats(layer.name).weight for layer in (one, other))
    if first != second:
        raise ConfigError(f"{names}, and layer_specific gives the weight two formats: give both layers the same")
    whole = isinstance(other.pruner, NoPruner) and not other.weight_quantizer.width().ndim
    places = torch.arange(other.weight.numel()).view(other.weight.shape)
    if not whole and not torch.equal(one.arranged(places), other.arranged(places)):
        raise ConfigError(
            f"{names}, whose first axis is that of the output channels in only one of them, so they cannot share a mask, or bits per channel or"
            " weight: name both in disable_pruning_for_layers and take granularity per_tensor, or do not share the weight"
        )


def check_ties(model: nn.Module, pruning: PruningMethod) -> None:
    """Raise a ConfigError where a pruning method would rescale a weight that a module without pruning uses too."""
    used = {id(own): name for name, module in model.named_modules() if not isinstance(module, CompressedLayer) for own in module._parameters.values()}
    for layer in weight_layers(model).values():
        if layer.prunable and pruning.rescales and id(layer.weight) in used:
            raise ConfigError(
                f"layer '{layer.name}' has its weight in common with '{used[id(layer.weight)]}', which is not pruned, and {type(pruning).__name__}"
                f" rescales the weights it keeps: name '{layer.name}' in disable_pruning_for_layers"
            )

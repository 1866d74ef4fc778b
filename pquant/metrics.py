"""What a compressed model is worth: sparsity, sizes, bits, a table by layer."""

from typing import Any

import torch
from torch import Tensor, nn

from pquant.layers.base import CompressedLayer, QuantizedLayer, pruned_layers, weight_layers
from pquant.pruning.group import Groups
from pquant.quantization.ebops import Deployed, ebops, layer_ebops
from pquant.quantization.price import prices


class Penalty:
    """The auxiliary losses of a model; calling it gives the scalar to add to the task's loss.

    It is that of pruning in the train stage, and the price of trained bits from then on. Made once for a model, it costs a step little.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pruned, self.prices, self.zero = Groups(list(pruned_layers(model).values())), prices(model), torch.zeros(())

    def __call__(self) -> Tensor:
        """Return the sum of the methods' losses and of the prices, 0 where there are none."""
        terms = [*self.pruned.penalties(), *(price() for price in self.prices)]
        return sum(terms[1:], start=terms[0]) if terms else self.zero.clone()


def penalty(model: nn.Module) -> Tensor:
    """Return the auxiliary losses of ``model`` now; see :class:`Penalty`."""
    return Penalty(model)()


def sparsity(model: nn.Module, constants: Deployed | None = None) -> float:
    """Return the share of zeros among the prunable weights, pruned and quantized as they would be deployed now.

    Prunable are the weights of dense and convolution layers that take part in pruning; of all of them when none does. ``constants`` are those of
    the layers, where they are known already.
    """
    layers = list(weight_layers(model).values())
    layers = [layer for layer in layers if layer.prunable] or layers
    weights = [(constants[layer] if constants else layer.deployed())[0] for layer in layers]
    total = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / total if total else 0.0


def layer_table(model: nn.Module) -> list[dict[str, Any]]:
    """Return one row a layer: name, type, shape, params, nonzero, sparsity, prunable, weight_bits, input_bits, output_bits, ebops.

    Bits are the mean total width, None for float values; EBOPs None where the input's shape is not known.
    """
    return [_row(name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer)]


def _row(name: str, layer: QuantizedLayer) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "type": type(layer).__name__}
    if isinstance(layer, CompressedLayer):
        weight, bias = layer.deployed()
        nonzero = int(weight.count_nonzero())
        row |= {"shape": list(weight.shape), "params": weight.numel(), "nonzero": nonzero, "sparsity": 1 - nonzero / max(weight.numel(), 1)}
        row |= {"prunable": layer.prunable, "weight_bits": layer.weight_quantizer.mean_width()}
    row |= {"input_bits": layer.operand().mean_width(), "output_bits": layer.output_quantizer.mean_width()}
    known = layer.calls or isinstance(layer, CompressedLayer) and layer.weight.ndim == 2
    return row | {"ebops": layer_ebops(layer) if known else None}


def figures(model: nn.Module) -> dict[str, Any]:
    """Return the headline figures of a compressed model.

    ``params`` and ``nonzero_params`` count weights and biases; ``weight_bits`` is the mean width of the non-zero weights, ``size_bytes`` what all
    non-zero parameters take at their widths, without an index; ``mask_sparsity`` counts what pruning alone removes.
    """
    params = nonzero = kept = prunable = 0
    bits = weight_bits = weights_left = 0.0
    for layer in weight_layers(model).values():
        weight, bias = layer.deployed()
        width = layer.weight_quantizer.width().to(weight.device).expand_as(weight)
        weight_bits += float(width[weight != 0].sum())
        weights_left += int(weight.count_nonzero())
        params, nonzero = params + weight.numel(), nonzero + int(weight.count_nonzero())
        if bias is not None:
            bits += float(layer.bias_quantizer.width().to(bias.device).expand_as(bias)[bias != 0].sum())
            params, nonzero = params + bias.numel(), nonzero + int(bias.count_nonzero())
        if layer.prunable:
            prunable += weight.numel()
            kept += int(layer.pruner.hard_mask(layer.weight).expand_as(weight).count_nonzero())
    return {
        "sparsity": sparsity(model),
        "mask_sparsity": 1 - kept / prunable if prunable else 0.0,
        "params": params,
        "nonzero_params": nonzero,
        "weight_bits": weight_bits / weights_left if weights_left else 0.0,
        "size_bytes": (weight_bits + bits) / 8,
        "ebops": ebops(model),
    }

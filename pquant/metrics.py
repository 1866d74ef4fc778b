"""Metrics of a compressed model: auxiliary losses, sparsity, EBOPs, sizes, a table by layer."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pquant.layers.base import CompressedLayer, QuantizedLayer, pruned_layers, weight_layers
from pquant.quantization.budget import Use
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantizer import Quantizer

Parameters = Mapping[QuantizedLayer, tuple[Tensor, Tensor | None]]
"""The finalized (weight, bias) of layers."""


class Penalty:
    """The auxiliary losses of a model; calling it gives the scalar to add to the task's loss.

    It is that of pruning in the train stage, and the regularization of trained bits from then on. It looks for the layers once, when it is made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pruned = list(pruned_layers(model).values())
        regularized = [module for module in model.modules() if isinstance(module, QuantizedLayer) and module.regularization is not None]
        self.counted = [layer for layer in regularized if layer.regularizes_ebops()]
        self.owners: dict[HGQQuantizer, QuantizedLayer] = {}
        for layer in regularized:
            if layer.quantization.hgq_gamma:
                for quantizer in layer.quantizers():
                    if isinstance(quantizer, HGQQuantizer):
                        self.owners.setdefault(quantizer, layer)
        met = [quantizer for layer in self.counted for quantizer in layer.counted()]
        self.trained = dict.fromkeys(quantizer for quantizer in (*self.owners, *met) if isinstance(quantizer, HGQQuantizer))
        self.budget = next((layer.regularization.budget for layer in self.counted), None)  # type: ignore[union-attr]
        self.zero = torch.zeros(())

    def __call__(self) -> Tensor:
        """Return the methods' losses + beta * EBOPs + gamma * (sum of all trained bit widths), 0 where there are none."""
        terms = [layer.pruner.penalty(layer.seen()) for layer in self.pruned]
        widths = {quantizer: quantizer.bits() for quantizer in self.trained}

        def width(quantizer: Quantizer) -> Tensor:
            return quantizer.bits() if (known := widths.get(quantizer)) is None else known  # type: ignore[call-overload]

        if self.budget is None:
            terms += [layer.regularization.beta * layer.trained_ebops(width) for layer in self.counted]  # type: ignore[union-attr]
        else:
            terms.append(self.budget.cost(self.ebops(width)))
        terms += [layer.regularization.gamma * widths[quantizer].sum() for quantizer, layer in self.owners.items()]  # type: ignore[union-attr]
        return sum(terms[1:], start=terms[0]) if terms else self.zero.clone()

    def ebops(self, width: Callable[[Quantizer], Tensor] = lambda quantizer: quantizer.bits()) -> Tensor:
        """Return the EBOPs by trained widths, a differentiable scalar; ``width`` gives the bits of a quantizer."""
        return sum((layer.trained_ebops(width) for layer in self.counted), start=self.zero)


def penalty(model: nn.Module) -> Tensor:
    """Return the auxiliary losses of ``model`` now, a scalar; see :class:`Penalty`."""
    return Penalty(model)()


def finalized_parameters(model: nn.Module) -> Parameters:
    """Return the (weight, bias) of each layer that has them, as they would be finalized now."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    return {layer: parameters for layer in layers if (parameters := layer.finalized_parameters()) is not None}


@torch.no_grad()
def ebops(model: nn.Module, parameters: Parameters | None = None) -> float:
    """Return the exact EBOPs of one inference of a compressed (or finalized) model, as it would be finalized now.

    ``parameters`` are :func:`finalized_parameters`, where they are known already.

    Raises:
        ConfigError: a convolution or batch norm whose input shape is not known; give ``compress`` an example input.
    """
    parameters = finalized_parameters(model) if parameters is None else parameters
    return sum((layer.ebops(parameters.get(layer)) for layer in model.modules() if isinstance(layer, QuantizedLayer)), start=0.0)


@torch.no_grad()
def bit_use(model: nn.Module) -> Use:
    """Return what a model uses of EBOPs and bits, as it would be finalized now."""
    parameters = finalized_parameters(model)
    weights = [(layer.weight_quantizer, parameters[layer][0]) for layer in weight_layers(model).values()]
    widths = [quantizer.width().to(weight.device).expand_as(weight)[weight != 0] for quantizer, weight in weights]
    left = sum(width.numel() for width in widths)
    bits = sum(float(width.sum()) for width in widths) / left if left else 0.0
    return Use(ebops(model, parameters), bits, float(Penalty(model).ebops()))


def sparsity(model: nn.Module, parameters: Parameters | None = None) -> float:
    """Return the share of zeros among the prunable weights, pruned and quantized as they would be finalized now.

    Prunable are the weights of dense and convolution layers that take part in pruning; of all of them when none does. ``parameters`` are
    :func:`finalized_parameters`, where they are known already.
    """
    layers = list(weight_layers(model).values())
    layers = [layer for layer in layers if layer.prunable] or layers
    weights = [(parameters[layer] if parameters else layer.finalized_parameters())[0] for layer in layers]
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
        weight, bias = layer.finalized_parameters()
        nonzero = int(weight.count_nonzero())
        row |= {"shape": list(weight.shape), "params": weight.numel(), "nonzero": nonzero, "sparsity": 1 - nonzero / max(weight.numel(), 1)}
        row |= {"prunable": layer.prunable, "weight_bits": layer.weight_quantizer.mean_width()}
    row |= {"input_bits": layer.operand().mean_width(), "output_bits": layer.output_quantizer.mean_width()}
    known = layer.calls or isinstance(layer, CompressedLayer) and layer.weight.ndim == 2
    return row | {"ebops": layer.ebops() if known else None}


def model_metrics(model: nn.Module) -> dict[str, Any]:
    """Return the headline metrics of a compressed model.

    ``params`` and ``nonzero_params`` count weights and biases; ``weight_bits`` is the mean width of the non-zero weights, ``size_bytes`` what all
    non-zero parameters take at their widths, without an index; ``mask_sparsity`` counts what pruning alone removes.
    """
    params = nonzero = kept = prunable = 0
    bits = weight_bits = weights_left = 0.0
    parameters = finalized_parameters(model)
    biased = {id(layer.bias): layer for layer in parameters if isinstance(layer, CompressedLayer) and layer.bias is not None}
    for layer in biased.values():
        bias = parameters[layer][1]
        assert bias is not None
        bits += float(layer.bias_quantizer.width().to(bias.device).expand_as(bias)[bias != 0].sum())
        params, nonzero = params + bias.numel(), nonzero + int(bias.count_nonzero())
    for layer in weight_layers(model).values():
        weight, _ = parameters[layer]
        width = layer.weight_quantizer.width().to(weight.device).expand_as(weight)
        weight_bits += float(width[weight != 0].sum())
        weights_left += int(weight.count_nonzero())
        params, nonzero = params + weight.numel(), nonzero + int(weight.count_nonzero())
        if layer.prunable:
            prunable += weight.numel()
            kept += int(layer.pruner.hard_mask(layer.seen()).expand_as(weight).count_nonzero())
    return {
        "sparsity": sparsity(model, parameters),
        "mask_sparsity": 1 - kept / prunable if prunable else 0.0,
        "params": params,
        "nonzero_params": nonzero,
        "weight_bits": weight_bits / weights_left if weights_left else 0.0,
        "size_bytes": (weight_bits + bits) / 8,
        "ebops": ebops(model, parameters),
    }

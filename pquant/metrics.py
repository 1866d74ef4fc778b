"""Metrics of a compressed model: auxiliary losses, sparsity, EBOPs, sizes, a table by layer."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pquant.layers.base import CompressedLayer, QuantizedLayer
from pquant.layers.coverage import own_parameters, parameter_quantizer
from pquant.layers.queries import counted_layers, ebops_budget, pruned_layers, weight_layers
from pquant.quantization.budget import Use
from pquant.quantization.hgq import HGQQuantizer
from pquant.quantization.quantizer import FLOAT_BITS, MantissaQuantizer, Quantizer

Parameters = Mapping[QuantizedLayer, tuple[Tensor, Tensor | None]]
"""The finalized (weight, bias) of layers."""


class Penalty:
    """The auxiliary losses of a model. A call returns the scalar to add to the loss of the task.

    The scalar contains the loss of the pruning method in the train stage, and the regularization of trained bits from the train stage on. The
    constructor collects the layers of the model once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.pruned = list(pruned_layers(model).values())
        regularized = [module for module in model.modules() if isinstance(module, QuantizedLayer) and module.regularization is not None]
        self.counted, self.budget = counted_layers(model), ebops_budget(model)
        owned: dict[HGQQuantizer, QuantizedLayer] = {}
        for layer in regularized:
            if layer.quantization.hgq_gamma:
                for quantizer in layer.quantizers():
                    if isinstance(quantizer, HGQQuantizer):
                        owned.setdefault(quantizer, layer)
        self.owners = {layer: [quantizer for quantizer, owner in owned.items() if owner is layer] for layer in dict.fromkeys(owned.values())}
        met = [quantizer for layer in self.counted for quantizer in layer.counted()]
        self.trained = dict.fromkeys(quantizer for quantizer in (*owned, *met) if isinstance(quantizer, HGQQuantizer))
        self.zero = torch.zeros(())

    def __call__(self) -> Tensor:
        """Return the losses of the pruning method + beta * EBOPs + gamma * (sum of all trained bit widths), 0 without any of them."""
        terms = [layer.pruner.penalty(layer.seen()) for layer in self.pruned]
        widths = {quantizer: quantizer.bits() for quantizer in self.trained}

        def width(quantizer: Quantizer) -> Tensor:
            return quantizer.bits() if (known := widths.get(quantizer)) is None else known  # type: ignore[call-overload]

        if self.budget is None:
            terms += [layer.regularization.beta * layer.trained_ebops(width) for layer in self.counted]  # type: ignore[union-attr]
        else:
            terms.append(self.budget.cost(self.ebops(width)))
        for layer, quantizers in self.owners.items():
            first, *others = (widths[quantizer].sum() for quantizer in quantizers)
            terms.append(layer.regularization.gamma * sum(others, start=first))  # type: ignore[union-attr]
        return sum(terms[1:], start=terms[0]) if terms else self.zero.clone()

    def ebops(self, width: Callable[[Quantizer], Tensor] = lambda quantizer: quantizer.bits()) -> Tensor:
        """Return the EBOPs by trained bit widths, a differentiable scalar; ``width`` returns the bits of a quantizer."""
        return sum((layer.trained_ebops(width) for layer in self.counted), start=self.zero)


def penalty(model: nn.Module) -> Tensor:
    """Return the auxiliary losses of ``model`` now, a scalar; see :class:`Penalty`."""
    return Penalty(model)()


def finalized_parameters(model: nn.Module) -> Parameters:
    """Return the (weight, bias) of each layer with a weight, as they would be if the model were finalized now."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    return {layer: parameters for layer in layers if (parameters := layer.finalized_parameters()) is not None}


@torch.no_grad()
def ebops(model: nn.Module, parameters: Parameters | None = None) -> float:
    """Return the exact EBOPs of one inference of a finalized model, or of a compressed model if it were finalized now.

    ``parameters`` is the result of :func:`finalized_parameters`, if the caller has it already.

    Raises:
        ConfigError: a layer whose EBOPs depend on the size of its input, such as a convolution, in a model compressed without an example input.
    """
    parameters = finalized_parameters(model) if parameters is None else parameters
    return sum((layer.ebops(parameters.get(layer)) for layer in model.modules() if isinstance(layer, QuantizedLayer)), start=0.0)


@torch.no_grad()
def bit_use(model: nn.Module) -> Use:
    """Return the EBOPs and mean bits of a model if it were finalized now, and its EBOPs by trained bit widths."""
    parameters = finalized_parameters(model)
    weights = [_count(True, parameters[layer][0], layer.weight_quantizer) for layer in weight_layers(model).values()]
    return Use(ebops(model, parameters), _mean_bits(weights), float(Penalty(model).ebops()))


def sparsity(model: nn.Module, parameters: Parameters | None = None) -> float:
    """Return the sparsity: the fraction of the prunable weights that would be 0 if the model were finalized now.

    Prunable weights are those of the dense and convolution layers that take part in pruning, or of all these layers if none takes part.
    ``parameters`` is the result of :func:`finalized_parameters`, if the caller has it already.
    """
    layers = list(weight_layers(model).values())
    layers = [layer for layer in layers if layer.prunable] or layers
    weights = [(parameters[layer] if parameters else layer.finalized_parameters())[0] for layer in layers]
    total = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / total if total else 0.0


def layer_table(model: nn.Module) -> list[dict[str, Any]]:
    """Return one row per layer: name, type, shape, params, nonzero, sparsity, prunable, weight_bits, input_bits, output_bits, ebops.

    Bits are mean total widths, None for float values. EBOPs are None if the shape of the input is not known.
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
    return row | {"ebops": layer.ebops() if layer.calls_or_default() else None}


def model_metrics(model: nn.Module) -> dict[str, Any]:
    """Return the headline metrics of a compressed model.

    ``params``, ``nonzero_params`` and ``size_bytes`` count all parameters as if the model were finalized now; those that stay float have 32 bits.
    ``size_bytes`` is the size of the non-zero values at their bit widths, without an index. ``weight_bits`` is the mean width of the non-zero values
    of all parameters with two axes or more. ``mask_sparsity`` counts only weights that the masks remove.
    """
    parameters = finalized_parameters(model)
    prunable = kept = 0
    for layer in weight_layers(model).values():
        if layer.prunable:
            weight, _ = parameters[layer]
            prunable += weight.numel()
            kept += int(layer.pruner.hard_mask(layer.seen()).expand_as(weight).count_nonzero())
    return {
        "sparsity": sparsity(model, parameters),
        "mask_sparsity": 1 - kept / prunable if prunable else 0.0,
        **sizes(model, parameters),
        "ebops": ebops(model, parameters),
    }


def sizes(model: nn.Module, parameters: Parameters | None = None) -> dict[str, Any]:
    """Return ``params``, ``nonzero_params``, ``weight_bits`` and ``size_bytes`` of :func:`model_metrics`, which need no example input."""
    parameters = finalized_parameters(model) if parameters is None else parameters
    counts = [_count(*one) for one in (*_of_layers(model, parameters), *_other_parameters(model, parameters))]
    return {
        "params": sum(one.total for one in counts),
        "nonzero_params": sum(one.nonzero for one in counts),
        "weight_bits": _mean_bits([one for one in counts if one.is_weight]),
        "size_bytes": sum(one.bits for one in counts) / 8,
    }


class _Count(NamedTuple):
    """Counts of one parameter: all values, non-zero values, and the bits of the non-zero values."""

    is_weight: bool
    total: int
    nonzero: int
    bits: float


def _count(is_weight: bool, values: Tensor, quantizer: Quantizer | None) -> _Count:
    nonzero = values != 0
    if isinstance(quantizer, MantissaQuantizer):
        width = torch.tensor(float(quantizer.k + quantizer.significant))
    else:
        width = torch.tensor(FLOAT_BITS) if quantizer is None else quantizer.width()
    bits = float(width.to(values.device).expand_as(values)[nonzero].sum())
    return _Count(is_weight, values.numel(), int(nonzero.sum()), bits)


def _mean_bits(counts: Sequence[_Count]) -> float:
    """Return the mean width of the non-zero values; 0 if all values are zero."""
    left = sum(one.nonzero for one in counts)
    return sum(one.bits for one in counts) / left if left else 0.0


def _of_layers(model: nn.Module, parameters: Parameters) -> Iterator[tuple[bool, Tensor, Quantizer]]:
    """Yield (is a weight, values, quantizer) for the weights and biases of layers; shared ones once."""
    for compressed in weight_layers(model).values():
        yield True, parameters[compressed][0], compressed.weight_quantizer
    biases: dict[int, tuple[Tensor, Quantizer]] = {}
    for layer, (weight, bias) in parameters.items():
        if not isinstance(layer, CompressedLayer):
            yield False, weight, getattr(layer, "weight_quantizer")  # noqa: B009  (of a norm)
        if bias is not None:
            biases[id(layer.bias) if isinstance(layer, CompressedLayer) else id(layer)] = (bias, getattr(layer, "bias_quantizer"))  # noqa: B009
    yield from ((False, bias, quantizer) for bias, quantizer in biases.values())


@torch.no_grad()
def _other_parameters(model: nn.Module, parameters: Parameters) -> Iterator[tuple[bool, Tensor, Quantizer | None]]:
    """Yield (is a weight, values, quantizer) for all other parameters: embedding tables, constants, and parameters that stay float.

    A parameter that a layer shares is left out if both have the same values once finalized, since they then share one tensor.
    """
    finals: dict[int, list[Tensor]] = {}
    for layer, (weight, bias) in parameters.items():
        stored = layer.stored(weight) if isinstance(layer, CompressedLayer) else weight
        for name, final in (("weight", stored), ("bias", bias)):
            if final is not None:
                finals.setdefault(id(layer._parameters.get(name)), []).append(final)
    for module, name, parameter in own_parameters(model):
        if module in parameters:
            continue
        quantizer = parameter_quantizer(module, name)
        values = parameter.detach() if quantizer is None else quantizer(parameter.detach())
        known = finals.setdefault(id(parameter), [])
        if not any(map(values.equal, known)):
            known.append(values)
            yield parameter.ndim > 1, values, quantizer

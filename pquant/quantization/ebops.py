"""Effective bit operations: C. Sun et al., "HGQ: High Granularity Quantization for Real-time Neural Networks on FPGAs", arXiv 2405.00645, section 3.

EBOPs add up, over all multiplications of one inference, the bits of the weight times the bits of the data, and the bits of each bias added.
Padding zeros cost nothing, nor do pruned weights; pools, ReLU and tanh multiply nothing. Float values count as 32 bits.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.flat import apart, end_to_end
from pquant.layers.base import Calls, CompressedLayer, QuantizedLayer
from pquant.quantization.quantizer import FLOAT_BITS, Quantizer

MANTISSA_BITS = 24
FEW = 2**20
"""Constants up to which those of all layers are looked at together."""

Deployed = dict[Any, tuple[Tensor, Tensor | None]]
"""The (weight, bias) of layers."""


def significant_bits(values: Tensor) -> Tensor:
    """Return, for each float32 value, the number of bits from its highest to its lowest set bit; 0 for 0."""
    mantissa = torch.frexp(values.detach().float().abs()).mantissa.mul(2**MANTISSA_BITS).to(torch.int32)
    lowest = torch.frexp((mantissa & -mantissa).float()).exponent - 1
    return torch.where(mantissa == 0, 0, MANTISSA_BITS - lowest).float()


def calls_of(layer: QuantizedLayer, weight: Tensor) -> Calls:
    """Return the (input, output) shapes of the layer's calls in one inference; one call for a dense layer that has seen no example.

    Raises:
        ConfigError: a convolution or batch norm whose input shape is not known.
    """
    if layer.calls:
        return layer.calls
    if isinstance(layer, CompressedLayer) and weight.ndim == 2:
        return (((weight.shape[1],), (weight.shape[0],)),)
    raise ConfigError(f"the EBOPs of layer '{layer.name}' depend on the size of its input: give compress an example_input")


def operations(layer: QuantizedLayer, weight: Tensor, bias: Tensor | None, data: Tensor) -> Tensor:
    """Return the EBOPs of one layer in one inference, differentiable in the bits.

    Args:
        layer: a dense, convolution or batch norm layer.
        weight: bits of each weight, of the weight's shape.
        bias: bits of each bias, (outputs,), or None.
        data: bits of the layer's input, broadcasting with one input.

    Raises:
        ConfigError: a convolution or batch norm whose input shape is not known.
    """
    total = weight.new_zeros(())
    for inputs, outputs in calls_of(layer, weight):
        x = data.to(weight).expand(1, *inputs)
        total = total + (layer.linear_map(x, weight, None) if isinstance(layer, CompressedLayer) else _by_channel(x, weight)).sum()
        if bias is not None:
            total = total + bias.sum() * (math.prod(outputs) // weight.shape[0])
    return total


def _by_channel(x: Tensor, weight: Tensor) -> Tensor:
    return x * weight.view(-1, *(1,) * (x.ndim - 2))


@torch.no_grad()
def deployed(model: nn.Module) -> Deployed:
    """Return the (weight, bias) of each layer of a compressed (or finalized) model that has them, as they would be deployed now."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLayer)]
    return {layer: constants for layer in layers if (constants := layer.deployed()) is not None}


@torch.no_grad()
def ebops(model: nn.Module, constants: Deployed | None = None) -> float:
    """Return the exact EBOPs of one inference of a compressed (or finalized) model, as it would be deployed now.

    ``constants`` are those of its layers, where they are known already.

    Raises:
        ConfigError: a convolution or batch norm whose input shape is not known; give ``compress`` an example input.
    """
    return _total(deployed(model) if constants is None else constants)


@torch.no_grad()
def layer_ebops(layer: QuantizedLayer) -> float:
    """Return the exact EBOPs of one layer as deployed: a constant counts the bits from its highest to its lowest set bit."""
    constants = layer.deployed()
    return 0.0 if constants is None else _total({layer: constants})


def _total(constants: Deployed) -> float:
    if not constants:
        return 0.0
    values = [each for pair in constants.values() for each in pair if each is not None]
    shapes = tuple(each.shape for each in values)
    few = sum(map(torch.Size.numel, shapes)) <= FEW
    bits = iter(apart(significant_bits(end_to_end(values, shapes)), shapes) if few else map(significant_bits, values))
    total = 0.0
    for layer, (weight, bias) in constants.items():
        weight_bits = _cost(weight, next(bits), layer.weight_quantizer)
        bias_bits = None if bias is None else _cost(bias, next(bits), layer.bias_quantizer)
        total += float(operations(layer, weight_bits, bias_bits, layer.operand().width()))
    return total


def _cost(values: Tensor, significant: Tensor, quantizer: Quantizer) -> Tensor:
    """Return the bits that each constant costs: its significant ones when it is quantized, 32 when it stays float, 0 when it is 0."""
    return (values != 0).double() * FLOAT_BITS if quantizer.is_float else significant.double()

"""Effective bit operations: C. Sun et al., "HGQ: High Granularity Quantization for Real-time Neural Networks on FPGAs", arXiv 2405.00645, section 3.

EBOPs add up, over all multiplications of one inference, the bits of the weight times the bits of the data. A constant weight counts the bits from
its highest to its lowest set bit, so pruned weights cost nothing; float values count as 32 bits.
"""

import math

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.layers.compressed import CompressedLayer, QuantizedLayer
from pquant.layers.norm import ChannelAffine, _BatchNorm
from pquant.quantization.quantizer import FLOAT_BITS, Quantizer

MANTISSA_BITS = 24


def significant_bits(values: Tensor) -> Tensor:
    """Return, for each float32 value, the number of bits from its highest to its lowest set bit; 0 for 0."""
    mantissa = torch.frexp(values.detach().float().abs()).mantissa.mul(2**MANTISSA_BITS).to(torch.int32)
    lowest = torch.frexp((mantissa & -mantissa).float()).exponent - 1
    return torch.where(mantissa == 0, 0, MANTISSA_BITS - lowest).float()


def constant_bits(values: Tensor, quantizer: Quantizer) -> Tensor:
    """Return the bits that each constant costs: its significant bits when it is quantized, 32 when it stays float, 0 when it is 0."""
    return (values != 0).float() * FLOAT_BITS if quantizer.is_float else significant_bits(values)


def layer_ebops(layer: QuantizedLayer) -> float:
    """Return the EBOPs of one layer in one inference.

    Raises:
        ConfigError: a convolution or batch norm whose input shape is not known.
    """
    if isinstance(layer, CompressedLayer):
        (weight, bias), quantizers = layer.deployed(), (layer.weight_quantizer, layer.bias_quantizer)
    elif isinstance(layer, (_BatchNorm, ChannelAffine)):
        weight, bias = (layer.weight, layer.bias) if isinstance(layer, ChannelAffine) else layer.scale_and_shift()
        quantizers = (layer.weight_quantizer, layer.bias_quantizer)
    else:
        return 0.0
    if not layer.calls and weight.ndim != 2:
        raise ConfigError(f"the EBOPs of layer '{layer.name}' depend on the size of its input: give compress an example_input")
    positions = sum(math.prod(output) // weight.shape[0] for _, output in layer.calls) if layer.calls else 1
    return positions * _multiplications(weight, bias, quantizers, layer.operand())


def _multiplications(weight: Tensor, bias: Tensor | None, quantizers: tuple[Quantizer, Quantizer], data: Quantizer) -> float:
    """Return the EBOPs of one output position: weights times data, plus the bias, which is added to every output."""
    weight_bits = constant_bits(weight, quantizers[0])
    total = float((weight_bits * data.width().max().to(weight_bits.device)).sum())
    if bias is not None:
        total += float(constant_bits(bias, quantizers[1]).sum())
    return total


def ebops(model: nn.Module) -> float:
    """Return the exact EBOPs of one inference of a compressed (or finalized) model, as it would be deployed now.

    Raises:
        ConfigError: a convolution or batch norm whose input shape is not known; give ``compress`` an example input.
    """
    return sum(layer_ebops(layer) for layer in model.modules() if isinstance(layer, QuantizedLayer))

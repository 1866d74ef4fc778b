"""Effective bit operations: C. Sun et al., "HGQ: High Granularity Quantization for Real-time Neural Networks on FPGAs", arXiv 2405.00645, section 3.

EBOPs add up, over all multiplications of one inference, the bits of the weight times the bits of the data, and the bits of each bias added.
Padding zeros cost nothing, nor do pruned weights; pools, ReLU and tanh multiply nothing. Float values count as 32 bits. A layer counts them by its
own linear map, applied to bit widths: :meth:`pquant.layers.QuantizedLayer.operations`.
"""

import torch
from torch import Tensor, nn

from pquant.quantization.budget import EbopsBudget
from pquant.quantization.quantization import Quantization
from pquant.quantization.quantizer import FLOAT_BITS, Quantizer
from pquant.training.stage import Stage

MANTISSA_BITS = 24


def significant_bits(values: Tensor) -> Tensor:
    """Return, for each float32 value, the number of bits from its highest to its lowest set bit; 0 for 0."""
    mantissa = torch.frexp(values.detach().float().abs()).mantissa.mul(2**MANTISSA_BITS).to(torch.int32)
    lowest = torch.frexp((mantissa & -mantissa).float()).exponent - 1
    return torch.where(mantissa == 0, 0, MANTISSA_BITS - lowest).float()


def constant_bits(values: Tensor, quantizer: Quantizer) -> Tensor:
    """Return the bits that each constant costs: its significant ones when it is quantized, 32 when it stays float, 0 when it is 0."""
    return (values != 0).double() * FLOAT_BITS if quantizer.is_float else significant_bits(values).double()


class BitRegularization(nn.Module):
    """The regularization weights of one layer's trained bits, beta for EBOPs and gamma for bit widths: 0 until the train stage begins.

    They follow the epochs of the train stage, whatever is rewound. All layers hold the same. Where there is a ``budget``, its beta takes the
    place of this one: it is one module, which all layers that :func:`pquant.compress` made share.
    """

    beta: Tensor
    gamma: Tensor
    epoch: Tensor

    def __init__(self, quantization: Quantization) -> None:
        super().__init__()
        self.quantization = quantization
        self.budget = None if quantization.budget is None else EbopsBudget(quantization.budget, quantization.hgq_beta, quantization.target_share)
        self.register_buffer("beta", torch.zeros(()))
        self.register_buffer("gamma", torch.zeros(()))
        self.register_buffer("epoch", torch.tensor(-1))

    def on_stage_start(self, stage: Stage) -> None:
        """Begin the schedule with the train stage."""
        if stage is Stage.TRAIN:
            self._set(0)

    def on_epoch_end(self) -> None:
        """Follow one epoch, from the train stage on."""
        if self.epoch >= 0:
            self._set(int(self.epoch) + 1)

    def _set(self, epoch: int) -> None:
        beta, gamma = self.quantization.regularization(epoch)
        self.epoch.fill_(epoch)
        self.beta.fill_(beta)
        self.gamma.fill_(gamma)

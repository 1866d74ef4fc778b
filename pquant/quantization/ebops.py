"""Effective bit operations: C. Sun et al., "HGQ: High Granularity Quantization for Real-time Neural Networks on FPGAs", arXiv 2405.00645, section 3.

EBOPs are the sum, over all multiplications of one inference, of the bits of the weight times the bits of the data, plus the bits of each bias
addition. Padding zeros and pruned weights cost nothing; pools, ReLU and tanh do not multiply. Float values count as 32 bits. A layer computes its
EBOPs with its linear map, applied to bit widths: :meth:`pquant.layers.QuantizedLayer.operations`.
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
    """Return the bits of each constant in EBOPs: its significant bits if it is quantized, 32 if it is float, 0 if it is 0."""
    return (values != 0).double() * FLOAT_BITS if quantizer.is_float else significant_bits(values).double()


class BitRegularization(nn.Module):
    """The regularization weights of the trained bits of one layer: beta for EBOPs and gamma for bit widths, 0 until the train stage begins.

    The schedule of beta counts all epochs since the start of the train stage; rewinding does not reset it. The weights are the same in all layers.
    With a ``budget``, the beta of the budget replaces this one; the layers of a model share one budget.
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
        """Start the schedule when the train stage starts."""
        if stage is Stage.TRAIN:
            self._set(0)

    def on_epoch_end(self) -> None:
        """Go to the next epoch of the schedule, once the train stage has started."""
        if self.epoch >= 0:
            self._set(int(self.epoch) + 1)

    def _set(self, epoch: int) -> None:
        beta, gamma = self.quantization.regularization(epoch)
        self.epoch.fill_(epoch)
        self.beta.fill_(beta)
        self.gamma.fill_(gamma)

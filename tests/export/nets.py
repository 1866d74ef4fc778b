"""Small finalized nets, and splits to export them with."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pquant.data.splits import Splits
from pquant.layers import compress, finalize
from pquant.pruning import Magnitude
from pquant.quantization import Quantization

FORMATS: dict[str, Any] = {
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 4,
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 3,
    "quantize_output": False,
    "use_relu_multiplier": False,
}


class Residual(nn.Module):
    """A convolution with a shortcut around it, a grouped one, and a dense layer after a transposition and a difference."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding="same")
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular")
        self.relu = nn.ReLU()
        self.pool = nn.AvgPool2d(2)
        self.dense = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        x = self.pool(self.relu(self.second(x)) - x + x)
        y = self.dense(x.transpose(1, 2).reshape(len(x), -1))
        return torch.cat([y[:, :2], -y], dim=1)


def mlp(*hidden: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), *hidden, nn.Linear(5, 3))


def net(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> nn.Module:
    """Return ``model`` finalized, with settings over FORMATS and half of its weights gone."""
    compressed = compressed_net(model, shape, **settings)
    return finalize(compressed)


def compressed_net(model: nn.Module, shape: tuple[int, ...], **settings: Any) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.6)
    return compress(model, Magnitude(sparsity=0.5), Quantization(**FORMATS | settings), torch.randn(16, *shape, generator=generator))


def splits(shape: tuple[int, ...], count: int = 20) -> Splits:
    x = torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(x, torch.zeros(count, dtype=torch.long))
    return Splits(data, data, data, 3)

"""Data and a network of one's own: two spirals, and a network that is no plain stack of layers."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from pquant.data.splits import Splits


@dataclass(frozen=True)
class Spirals:
    """Points (x, y) on two spirals that turn around each other; which of them it is."""

    points: int = 1200
    turns: float = 1.5
    noise: float = 0.04

    def load(self, seed: int) -> Splits:
        """Return the splits: 70 % training, 10 % validation, 20 % test."""
        generator = torch.Generator().manual_seed(seed)
        spiral = torch.arange(self.points) % 2
        radius = torch.rand(self.points, generator=generator).sqrt()
        angle = 2 * torch.pi * self.turns * radius + torch.pi * spiral
        x = torch.stack([radius * angle.cos(), radius * angle.sin()], 1) + self.noise * torch.randn(self.points, 2, generator=generator)
        parts = [round(share * self.points) for share in (0.7, 0.1)]
        sizes = [*parts, self.points - sum(parts)]
        train, validation, test = (TensorDataset(*part) for part in zip(x.split(sizes), spiral.split(sizes), strict=True))
        return Splits(train, validation, test, num_classes=2)


class SkipNet(nn.Module):
    """Two hidden layers; the last layer also sees the first. ``input_shape`` and ``num_outputs`` come from the data."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int, width: int = 32) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(input_shape[0], width), nn.Linear(width, width)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.last = nn.Linear(2 * width, num_outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (batch, outputs) for (batch, features)."""
        seen = self.relu1(self.first(x))
        return self.last(torch.cat([seen, self.relu2(self.second(seen))], 1))

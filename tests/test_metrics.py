"""Metrics of a model count all that it holds, what stays float with 32 bits a value."""

import pytest
import torch
from torch import nn

import pquant
from pquant.pruning import DST, NoPruning
from pquant.quantization import Quantization
from pquant.reporting.headline import headline

from .formats import EIGHT_BITS


class Mixed(nn.Module):
    """A network with parameters of every kind: 72 + 6 of a convolution, 12 of each norm, 6 of its own, 18 + 3 of a dense layer, a PReLU's one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.batch_norm, self.layer_norm = nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.LayerNorm(6)
        self.shift, self.head, self.prelu = nn.Parameter(torch.ones(6)), nn.Linear(6, 3), nn.PReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 3) of (batch, 4, length)."""
        return self.head(self.prelu(self.layer_norm(self.batch_norm(self.conv(x)).mean(2) + self.shift)))


class Pairs(nn.Module):
    """A bilinear layer, for which there is no quantized one, and a dense layer."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs, self.head = nn.Bilinear(4, 4, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (batch, 3) of (batch, 4)."""
        return self.head(self.pairs(x, x))


@pytest.mark.parametrize("pruning", [NoPruning(), DST()], ids=["dense", "dst"])
@pytest.mark.parametrize("quantization", [None, EIGHT_BITS], ids=["float", "8 bits"])
def test_all_parameters_are_counted_before_and_after_finalize(pruning: pquant.pruning.PruningMethod, quantization: Quantization | None) -> None:
    net = Mixed()
    model = pquant.compress(net, pruning, quantization, torch.randn(2, 4, 5))
    metrics = pquant.model_metrics(model)
    assert metrics["params"] == sum(parameter.numel() for parameter in net.parameters()) == 130
    assert metrics["weight_bits"] == (8 if quantization else 32)
    if quantization is None:
        assert metrics["size_bytes"] == 4 * metrics["nonzero_params"]
    else:
        table = 4  # the slope of PReLU, which becomes part of a table
        assert metrics["size_bytes"] == metrics["nonzero_params"] - 1 + table
    assert pquant.model_metrics(pquant.finalize(model)) == metrics


def test_what_stays_float_counts_with_32_bits() -> None:
    net = Pairs()
    for parameter in net.parameters():
        parameter.data.fill_(0.5)
    model = pquant.compress(net, None, EIGHT_BITS, torch.randn(2, 4))
    metrics, share = pquant.model_metrics(model), pquant.coverage(model)["parameters"]
    left_float, quantized = 8 * 16 + 8, 24 + 3
    assert metrics["params"] == metrics["nonzero_params"] == left_float + quantized
    assert metrics["size_bytes"] == 4 * left_float + quantized
    assert metrics["weight_bits"] == pytest.approx((32 * 128 + 8 * 24) / (128 + 24))
    [line] = [one for one in headline(metrics | {"coverage/parameters": share}) if one.label == "Parameters left"]
    assert line.note == "of 163, 16.56 % of them quantized"


def test_a_table_of_an_embedding_counts_as_weights() -> None:
    net = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3))
    model = pquant.compress(net, None, EIGHT_BITS, torch.randint(0, 10, (2, 2)))
    metrics = pquant.model_metrics(model)
    assert metrics["params"] == 40 + 24 + 3 and metrics["weight_bits"] == 8
    assert metrics["size_bytes"] == metrics["nonzero_params"]

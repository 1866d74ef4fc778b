"""Weights of runs whose layers hold torch's parameters in parts: attention and recurrent layers take up from them as others do."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.pruning import DST
from pquant.saved_model import take_weights
from pquant.training.checkpoint import save_checkpoint

from .formats import EIGHT_BITS


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.GRU(4, 4, batch_first=True)
        self.second = nn.Linear(4, 4)
        self.third = nn.Linear(4, 4)
        self.third.weight = self.second.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)[0]))


class Attention(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **options)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.attention(x, x, x)[0].mean(1))


NETS: dict[str, Callable[[], nn.Module]] = {
    "gru": lambda: nn.GRU(4, 3, num_layers=2, bidirectional=True, batch_first=True),
    "lstm with projections": lambda: nn.LSTM(4, 6, proj_size=2, batch_first=True),
    "rnn without bias": lambda: nn.RNN(4, 3, bias=False),
    "cell": lambda: nn.GRUCell(4, 3),
    "attention": Attention,
    "attention with own keys": lambda: Attention(add_bias_kv=True),
    "encoder": lambda: nn.TransformerEncoderLayer(4, 2, 8, batch_first=True),
    "tied": Tied,
}


def trained(make: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """Return a float model with random parameters, and a compressed model that has them."""
    torch.manual_seed(1)
    net = make()
    with torch.no_grad():
        for value in net.state_dict().values():
            value.copy_(torch.rand(value.shape) * 3 if value.is_floating_point() else torch.tensor(7))
    return net, pquant.compress(net, DST(), EIGHT_BITS)


@pytest.mark.parametrize("kind", NETS)
def test_the_float_model_gets_the_weights_of_the_compressed_one(kind: str, tmp_path: Path) -> None:
    net, model = trained(NETS[kind])
    save_checkpoint(tmp_path / "checkpoint.pt", {"state": {"model": model.state_dict()}})
    fresh = NETS[kind]()
    take_weights(fresh, str(tmp_path))
    expected = net.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in fresh.state_dict().items())


def test_a_file_of_a_finalized_model_will_do(tmp_path: Path) -> None:
    final = pquant.finalize(trained(NETS["gru"])[1])
    safetensors.torch.save_file({name: value.contiguous() for name, value in final.state_dict().items()}, tmp_path / "m.safetensors")
    fresh = NETS["gru"]()
    take_weights(fresh, str(tmp_path / "m.safetensors"))
    assert torch.equal(fresh.weight_ih_l1_reverse, final.l1_reverse.ih.weight)


def test_what_does_not_fit_is_said(tmp_path: Path) -> None:
    _, model = trained(NETS["gru"])
    save_checkpoint(tmp_path / "checkpoint.pt", {"state": {"model": model.state_dict()}})
    with pytest.raises(ConfigError, match=r"init_from: 'l0.ih.weight' is \(9, 4\) in .* and \(15, 4\) in the model"):
        take_weights(nn.GRU(4, 5, num_layers=2, bidirectional=True, batch_first=True), str(tmp_path))
    less = copy.deepcopy(model.state_dict())
    del less["l1.hh.bias"]
    save_checkpoint(tmp_path / "checkpoint.pt", {"state": {"model": less}})
    with pytest.raises(ConfigError, match="has no 'bias_hh_l1', which the model needs"):
        take_weights(NETS["gru"](), str(tmp_path))

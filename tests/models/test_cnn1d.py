from typing import Any

import pytest
import torch
from torch import nn

from pquant.errors import ConfigError
from pquant.models import CNN1d


@pytest.mark.parametrize(("length", "features"), [(16, 128), (8, 64), (7, 32), (4, 32)])
def test_fits_the_length(length: int, features: int) -> None:
    model = CNN1d(input_shape=(length, 3), num_outputs=5)
    assert model.head[0].in_features == features
    assert model(torch.zeros(2, length, 3)).shape == (2, 5)


def test_the_axis_of_the_channels_is_a_choice() -> None:
    last, first = CNN1d(input_shape=(8, 3), num_outputs=5).eval(), CNN1d(input_shape=(3, 8), num_outputs=5, channels_last=False).eval()
    first.load_state_dict(last.state_dict())
    x = torch.randn(2, 8, 3)
    assert torch.equal(first(x.transpose(1, 2)), last(x))
    assert last.blocks[0].conv.in_channels == 3


@pytest.mark.parametrize(("pool", "kind"), [("max", nn.MaxPool1d), ("average", nn.AvgPool1d)])
def test_blocks_by_name(pool: str, kind: type[nn.Module]) -> None:
    model = CNN1d(input_shape=(8, 3), num_outputs=5, channels=[4, 6], pool=pool)  # type: ignore[arg-type]
    layers = {"conv": nn.Conv1d, "norm": nn.BatchNorm1d, "relu": nn.ReLU, "pool": kind}
    assert [{name: type(module) for name, module in block.named_children()} for block in model.blocks] == [layers, layers]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"channels": [4, 4, 4, 4]}, r"CNN1d.channels must have at most 3 widths for a length of 8, got \[4, 4, 4, 4\]"),
        ({"pool": "avarage"}, r"CNN1d.pool: unknown pool 'avarage': did you mean 'average'\?"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CNN1d(input_shape=(8, 3), num_outputs=5, **fields)

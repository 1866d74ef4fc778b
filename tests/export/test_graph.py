from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.errors import ConfigError
from pquant.export.graph import LayerStep, MoveStep, SumStep
from pquant.export.recording import record
from pquant.export.replay import input_format
from pquant.models import MLP, ResNet20

from .nets import compressed_net


class Calls(nn.Module):
    """A dense layer, then a function of its output."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.dense, self.function = nn.Linear(6, 6), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.dense(x))


MOVES: list[Callable[[Tensor], Tensor]] = [
    lambda x: x.reshape(len(x), 2, 3).transpose(1, 2),
    lambda x: x[:, ::2],
    lambda x: torch.cat([x, x[:, :1]], 1),
    lambda x: torch.stack(x.chunk(2, 1), 2),
    lambda x: x.unsqueeze(1).expand(-1, 2, -1).flatten(1),
    lambda x: F.pad(x, (1, 2)),
    lambda x: F.dropout(x, training=False),
]


@pytest.mark.parametrize("function", MOVES)
def test_moves_are_places(function: Callable[[Tensor], Tensor]) -> None:
    graph = record(compressed_net(Calls(function), (6,)), (6,))
    values = [np.zeros(6), np.arange(6.0)]
    for step in graph.steps[1:]:
        assert isinstance(step, MoveStep)
        laid = np.concatenate([*(values[at].ravel() for at in step.inputs), [0.0]])
        values.append(laid[step.index])
    expected = function(torch.arange(6.0)[None])[0].numpy()
    np.testing.assert_array_equal(values[graph.output], expected)
    assert graph.output_shape == expected.shape


@pytest.mark.parametrize(
    ("function", "signs"), [(lambda x: x + x, (1, 1)), (lambda x: x - x, (1, -1)), (lambda x: -x, (-1,)), (lambda x: torch.sub(x, x), (1, -1))]
)
def test_sums(function: Callable[[Tensor], Tensor], signs: tuple[int, ...]) -> None:
    step = record(compressed_net(Calls(function), (6,)), (6,)).steps[1]
    assert isinstance(step, SumStep) and step.signs == signs and step.inputs == (1,) * len(signs)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (torch.sin, "sin in 'model'"),
        (lambda x: torch.sum(x), "sum in 'model' mixes the examples"),
        (lambda x: x + x.max(1, keepdim=True)[1], "max in 'model' gives indices"),
        (lambda x: x + float(x.max()), "mixes the examples"),
        (lambda x: x * 2 if x[:, 0].sum() > 0 else x, "sum in 'model' mixes"),
        (lambda x: torch.add(x, x, alpha=2), "without a factor"),
        (lambda x: x.flip(0), "flip"),
        (lambda x: x.reshape(-1), "its batch first"),
    ],
)
def test_what_is_no_hardware_is_named(function: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        record(compressed_net(Calls(function), (6,)), (6,))


def test_control_flow_on_shapes_is_followed() -> None:
    graph = record(compressed_net(MLP([None, 4, None], (2, 3), 3), (2, 3)), (2, 3))
    assert [type(step) for step in graph.steps] == [MoveStep, LayerStep, LayerStep, LayerStep]


def test_shortcuts_of_a_resnet() -> None:
    graph = record(compressed_net(ResNet20((1, 8, 8), 3, blocks=1), (1, 8, 8)), (1, 8, 8))
    assert sum(isinstance(step, SumStep) for step in graph.steps) == 3
    assert len(list(graph.layers)) == 27


def test_the_model_is_left_as_it_was() -> None:
    model = compressed_net(Calls(torch.neg), (6,)).train()
    hooks = sum(len(module._forward_hooks) for module in model.modules())
    record(model, (6,))
    assert model.training and hooks == sum(len(module._forward_hooks) for module in model.modules())


def test_a_model_that_nothing_quantizes_is_told_what_to_use_instead() -> None:
    with pytest.raises(
        ConfigError, match="no layer quantizes the model's input: use layers that dry_run=true lists, with quantization.quantize_input"
    ):
        input_format(record(nn.Identity(), (6,)))

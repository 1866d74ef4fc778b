"""Fisher information against gradients taken one example at a time."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.errors import ConfigError
from pquant.fitcompress import StoppingRule, fisher
from pquant.fitcompress.fisher import relative_error
from pquant.layers.queries import weight_layers
from pquant.models import ResNet20


class Twice(nn.Module):
    """A dense layer that is called twice, a residual sum in place, and an in-place ReLU on a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x), inplace=True)
        y = torch.tanh(self.again(y))
        y = self.again(y)
        y += x.sum(1, keepdim=True)
        return self.head(y)


class Sequence(nn.Module):
    """Dense layers on (batch, time, features)."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 5), nn.Linear(5, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(x))).mean(1)


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, 3))
    net[2].weight = net[0].weight
    return net


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1, padding_mode="circular"),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 3, groups=2, dilation=2, padding="same"),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


NETS = {
    "conv": (conv, (3, 8, 8)),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)), (2, 6)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3)), (1, 3, 3, 3)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), nn.Tanh(), nn.Flatten(), nn.Linear(96, 3)), (4, 2, 2)),
    "twice": (Twice, (5,)),
    "sequence": (Sequence, (7, 4)),
    "tied": (tied, (6,)),
}


def case(name: str, count: int = 13) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    make, shape = NETS[name]
    net = make().double()
    x, y = torch.randn(count, *shape, dtype=torch.float64), torch.randint(0, 3, (count,))
    net(x)  # batch norms learn some statistics
    return pquant.compress(net.float(), example_input=x.float()).double().eval(), x, y


def batches(x: Tensor, y: Tensor, size: int = 5) -> list[tuple[Tensor, ...]]:
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("name", NETS)
def test_the_diagonal_is_the_mean_of_each_examples_squared_gradient(name: str) -> None:
    model, x, y = case(name)
    layers = weight_layers(model)
    expected = {layer: torch.zeros_like(one.arranged(one.weight)) for layer, one in layers.items()}
    for index in range(len(x)):
        loss = F.cross_entropy(model(x[index : index + 1]), y[index : index + 1])
        for layer, gradient in zip(layers, torch.autograd.grad(loss, [one.weight for one in layers.values()]), strict=True):
            expected[layer] += layers[layer].arranged(gradient).square() / len(x)
    found = fisher(model, batches(x, y), F.cross_entropy)
    assert found.weights.keys() == expected.keys()
    for layer, diagonal in expected.items():
        torch.testing.assert_close(found.weights[layer], diagonal, rtol=1e-10, atol=1e-14)
    whole = sum(float(diagonal.sum()) for diagonal in expected.values())
    assert sum(t * n for t, n in zip(found.traces, (5, 5, 3), strict=True)) / 13 == pytest.approx(whole, rel=1e-10)


def test_logistic_regression_has_its_analytic_value() -> None:
    torch.manual_seed(0)
    model = pquant.compress(nn.Linear(4, 3)).double()
    x, y = torch.randn(20, 4, dtype=torch.float64), torch.randint(0, 3, (20,))
    error = model(x).softmax(1) - F.one_hot(y, 3)
    expected = torch.einsum("no,ni->oi", error.square(), x.square()) / 20
    torch.testing.assert_close(fisher(model, batches(x, y), F.cross_entropy).weights[""], expected.detach(), rtol=1e-12, atol=0)


def test_a_mean_squared_error_counts_as_the_batchs_mean() -> None:
    model = pquant.compress(nn.Linear(3, 2, bias=False)).double()
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    upstream = (model(x) - y).detach()  # d/dy of mean over 2 outputs of (output - y)^2
    expected = torch.einsum("no,ni->oi", upstream.square(), x.square()) / 6
    torch.testing.assert_close(fisher(model, batches(x, y, 6), F.mse_loss).weights[""], expected, rtol=1e-12, atol=0)


def test_input_traces_are_those_of_the_layers_own_input() -> None:
    model, x, y = case("twice")
    found = fisher(model, batches(x, y), F.cross_entropy)
    inside: list[Tensor] = []
    handle = model.head.register_forward_pre_hook(lambda _, inputs: inside.append(inputs[0]))
    expected = 0.0
    for index in range(len(x)):
        loss = F.cross_entropy(model(x[index : index + 1]), y[index : index + 1])
        expected += float(torch.autograd.grad(loss, inside[-1])[0].square().sum()) / len(x)
    handle.remove()
    assert found.inputs["head"] == pytest.approx(expected, rel=1e-10)
    assert found.inputs["first"] > 0


def test_an_input_that_feeds_two_layers_counts_in_each_with_its_own_share() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 3, bias=False), nn.Linear(4, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) + self.right(x)

    torch.manual_seed(0)
    model = pquant.compress(Fork()).double()
    x, y = torch.randn(9, 4, dtype=torch.float64), torch.randint(0, 3, (9,))
    upstream = (model(x).softmax(1) - F.one_hot(y, 3)).detach()
    found = fisher(model, batches(x, y), F.cross_entropy)
    for name in ("left", "right"):
        own = upstream @ getattr(model, name).weight.detach()
        assert found.inputs[name] == pytest.approx(float(own.square().sum(1).mean()), rel=1e-10)


def test_nothing_of_the_model_changes_and_nothing_is_left_on_it() -> None:
    model, x, y = case("conv")
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    fisher(model, batches(x, y), F.cross_entropy)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items() if isinstance(value, Tensor))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any("linear_map" in vars(module) for module in model.modules())


def test_no_examples_give_zeros_and_an_infinite_error() -> None:
    model, _, _ = case("twice")
    found = fisher(model, [], F.cross_entropy)
    assert found.iterations == 0 and found.error == float("inf")
    assert not any(diagonal.any() for diagonal in found.weights.values())


def spread(rule: StoppingRule, same: bool) -> int:
    """Return the batches used of 20 that are all alike, or very different."""
    torch.manual_seed(1)
    model = pquant.compress(nn.Linear(3, 2))
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
    data = [(x * (1 if same else 10.0 ** (index % 3)), y) for index in range(20)]
    return fisher(model, data, F.cross_entropy, rule).iterations


def test_the_rule_stops_between_its_bounds_when_the_trace_is_known_well_enough() -> None:
    assert spread(StoppingRule(tolerance=0.05, min_iterations=5, max_iterations=12), same=True) == 5
    assert spread(StoppingRule(tolerance=0.05, min_iterations=5, max_iterations=12), same=False) == 12
    assert spread(StoppingRule(tolerance=0.0, min_iterations=2, max_iterations=12), same=True) == 12
    assert 2 <= spread(StoppingRule(tolerance=2.0, min_iterations=2, max_iterations=12), same=False) < 12
    assert spread(StoppingRule(tolerance=0.0, min_iterations=2, max_iterations=40), same=True) == 20


def test_the_error_is_the_standard_error_over_the_mean() -> None:
    assert relative_error([1.0, 3.0]) == pytest.approx((2**0.5) / (2**0.5) / 2)
    assert relative_error([0.0, 0.0]) == 0.0
    assert relative_error([1.0]) == float("inf")


def test_a_rule_with_its_bounds_the_wrong_way_round_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"StoppingRule.max_iterations must be at least min_iterations = 9, got 3"):
        StoppingRule(min_iterations=9, max_iterations=3)


def test_a_residual_network_goes_through() -> None:
    torch.manual_seed(0)
    x, y = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
    model = pquant.compress(ResNet20((3, 16, 16), 10, blocks=1), example_input=x)
    found = fisher(model, [(x, y)], F.cross_entropy)
    assert all(diagonal.sum() > 0 for diagonal in found.weights.values())

"""PDP: the soft mask, its border and temperature, the ramp, the budgets, whole channels."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import pruned_layers
from pquant.pruning import PDP
from pquant.pruning.pdp import PDPPruner

ALL_AT_ONCE = 1.0


def in_training(method: PDP, weight: Tensor, epochs: int = 3) -> PDPPruner:
    pruner = method.pruner(weight, nn.Linear)
    pruner.on_stage_start(pquant.Stage.TRAIN, pquant.Horizon(epochs, 4))
    method.prepare({"one": (pruner, weight)})
    return pruner


def model_in_training(method: PDP, model: nn.Module, epochs: int = 3) -> nn.Module:
    compressed = pquant.compress(model, method)
    pquant.set_stage(compressed, pquant.Stage.TRAIN, pquant.Horizon(epochs, 4))
    return compressed


@given(rows=st.integers(1, 6), columns=st.integers(1, 9), sparsity=st.floats(0, 1), seed=st.integers(0, 10**6))
def test_a_cold_mask_is_the_hard_one_with_exactly_the_number_asked(rows: int, columns: int, sparsity: float, seed: int) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pruner = in_training(PDP(sparsity=sparsity, epsilon=ALL_AT_ONCE, temperature=1e-14), weight)
    pruned = round(sparsity * weight.numel())
    hard = pruner.train_mask(weight)
    assert int((~hard).sum()) == pruned
    if 0 < pruned < weight.numel():
        assert weight.abs()[~hard].max() < weight.abs()[hard].min()
    torch.testing.assert_close(pruner.soft_mask(weight), hard.double(), atol=1e-3, rtol=0)


def test_the_mask_is_one_half_at_the_border_between_kept_and_pruned() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.4, -0.8]], dtype=torch.float64)
    pruner = in_training(PDP(sparsity=0.5, epsilon=ALL_AT_ONCE), weight)
    border = torch.tensor([[0.3, -0.3, 0.3, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(pruner.soft_mask(border), torch.full((1, 4), 0.5, dtype=torch.float64))


@pytest.mark.parametrize("scale", ["absolute", "relative"])
def test_value_and_gradient_against_closed_form(scale: str) -> None:
    weight = torch.randn(5, 6, dtype=torch.float64, requires_grad=True)
    pruner = in_training(PDP(sparsity=0.5, epsilon=ALL_AT_ONCE, temperature=0.1, temperature_scale=scale), weight.detach())
    w = weight.detach()
    tau = 0.1 * (w.square().mean() if scale == "relative" else 1)
    ordered = w.abs().flatten().sort().values
    mask = torch.sigmoid((w.square() - ((ordered[14] + ordered[15]) / 2) ** 2) / tau)
    direction = torch.randn(5, 6, dtype=torch.float64)
    out = pruner(weight)
    (out * direction).sum().backward()
    torch.testing.assert_close(out.detach(), mask * w)
    torch.testing.assert_close(weight.grad, direction * (mask + 2 * w.square() * mask * (1 - mask) / tau))


def test_extreme_weights_and_temperatures_stay_finite() -> None:
    weight = torch.tensor([[1e-20, 1e3, -1e4, 0.0]], requires_grad=True)
    pruner = in_training(PDP(sparsity=0.5, epsilon=ALL_AT_ONCE, temperature=1e-12), weight.detach())
    pruner(weight).sum().backward()
    assert torch.isfinite(pruner(weight)).all() and torch.isfinite(weight.grad).all()


@given(epochs=st.integers(1, 90), epsilon=st.one_of(st.just("auto"), st.floats(0.001, 1)))
def test_the_ramp_grows_by_epsilon_an_epoch_and_stays(epochs: int, epsilon: float | str) -> None:
    weight = torch.randn(10, 20)
    method = PDP(sparsity=0.5, epsilon=epsilon)
    pruner = in_training(method, weight, epochs)
    step = 1 / max(round(epochs * 2 / 3), 1) if epsilon == "auto" else epsilon
    for epoch in range(epochs):
        assert pruner.count == round(min(1.0, step * (epoch + 1)) * 100)
        pruner.on_epoch_end(weight)
    assert pruner.count == round(min(1.0, step * epochs) * 100)
    if epsilon == "auto":
        assert pruner.count == 100


def test_a_ramp_too_slow_for_training_is_warned_of_with_what_would_do() -> None:
    (text,) = PDP(epsilon=0.015, sparsity=0.8).warnings(pquant.Horizon(20, 5))
    assert "prunes 24.0 %" in text and "80.0 %" in text and "0.075 or 'auto'" in text
    assert not PDP(epsilon="auto").warnings(pquant.Horizon(20, 5))
    assert not PDP(epsilon=0.05).warnings(pquant.Horizon(20, 5))


@pytest.mark.parametrize("excluded", [[], ["0"], ["2"]])
def test_one_magnitude_threshold_shares_the_sparsity_out(excluded: list[str]) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5))
    net[0].weight.data.mul_(3)
    model = model_in_training(PDP(sparsity=0.8, epsilon=ALL_AT_ONCE, disable_pruning_for_layers=excluded), net)
    layers = pruned_layers(model)
    weights = torch.cat([layer.weight.detach().abs().flatten() for layer in layers.values()])
    assert sum(layer.pruner.count for layer in layers.values()) == round(0.8 * weights.numel())
    border = weights.sort().values[round(0.8 * weights.numel()) - 1]
    for layer in layers.values():
        assert layer.pruner.count == int((layer.weight.abs() <= border).sum())


@pytest.mark.parametrize("net", [nn.Conv2d(3, 8, 3), nn.Conv1d(4, 8, 3, groups=2), nn.Linear(6, 8)], ids=lambda net: type(net).__name__)
def test_channels_go_whole_by_their_norm_with_their_bias(net: nn.Module) -> None:
    model = model_in_training(PDP(sparsity=0.5, epsilon=ALL_AT_ONCE, structured_pruning=True), nn.Sequential(net, nn.ReLU(), nn.Flatten()))
    layer = model[0]
    layer.pruner.makes_output = False
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(3, 4))
    norms = layer.weight.detach().flatten(1).norm(dim=1)
    weak = norms.argsort()[:4]
    final = pquant.finalize(model)[0]
    gone = ~final.weight.flatten(1).any(1)
    assert set(gone.nonzero().flatten().tolist()) == set(weak.tolist())
    assert not final.bias[gone].any() and final.bias[~gone].all()


def test_every_layer_keeps_a_channel_and_the_output_layer_all() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2))
    net[0].weight.data.mul_(1e-3)
    model = model_in_training(PDP(sparsity=1.0, epsilon=ALL_AT_ONCE, structured_pruning=True), net)
    kept = [int(layer.finalized_parameters()[0].flatten(1).any(1).sum()) for layer in pruned_layers(model).values()]
    assert kept == [1, 1, 2]


@pytest.mark.parametrize("sparsity", [0.0, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1)])
def test_all_nothing_and_the_smallest_layers(shape: tuple[int, int], sparsity: float) -> None:
    weight = torch.randn(shape)
    pruner = in_training(PDP(sparsity=sparsity, epsilon=ALL_AT_ONCE), weight)
    wanted = weight if sparsity == 0 else torch.zeros(shape)
    assert torch.equal(pruner(weight), wanted) and torch.equal(pruner.eval()(weight), wanted)


def test_equal_weights_are_pruned_to_the_exact_number() -> None:
    pruner = in_training(PDP(sparsity=0.4, epsilon=ALL_AT_ONCE), torch.ones(5, 2))
    assert int(pruner.train_mask(torch.ones(5, 2)).sum()) == 6


def test_the_border_follows_the_weights_step_by_step() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    pruner = in_training(PDP(sparsity=0.5, epsilon=ALL_AT_ONCE), weight)
    assert float(pruner.border) == pytest.approx(2.5**2)
    pruner.on_batch_end(2 * weight)
    assert float(pruner.border) == pytest.approx(5.0**2)


def test_a_step_does_not_wait_for_the_device(no_host_sync: Callable) -> None:
    weight = torch.randn(6, 6, requires_grad=True)
    pruner = in_training(PDP(sparsity=0.5, epsilon=ALL_AT_ONCE), weight.detach())
    with no_host_sync():
        pruner(weight).sum().backward()
        pruner.on_batch_end(weight)


@pytest.mark.parametrize("wrong", [{"sparsity": 1.5}, {"epsilon": 0}, {"epsilon": "never"}, {"temperature": 0.0}, {"temperature": math.nan}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"PDP.{next(iter(wrong))}"):
        PDP(**wrong)


@given(st.lists(st.floats(-3, 3, width=32), min_size=3, max_size=8), st.sampled_from([0.25, 0.5, 0.75]))
def test_of_equal_channels_as_many_stay_as_of_others(row: list[float], sparsity: float) -> None:
    weight = torch.tensor(row).repeat(8, 1)
    pruner = in_training(PDP(sparsity=sparsity, epsilon=ALL_AT_ONCE, structured_pruning=True), weight)
    assert pruner.count == 8 * sparsity and int(pruner.train_mask(weight).sum()) == 8 - pruner.count

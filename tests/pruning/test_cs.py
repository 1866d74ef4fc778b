"""Continuous sparsification: scores, temperature, rounds, and what is folded into the weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import pruned_layers
from pquant.pruning import CS
from pquant.pruning.cs import CSPruner


def in_training(method: CS, weight: Tensor, epochs: int = 5, rounds: int = 1) -> CSPruner:
    pruner = method.pruner(weight, nn.Linear)
    pruner.on_stage_start(pquant.Stage.TRAIN, pquant.Horizon(epochs, 3, rounds))
    return pruner


@pytest.mark.parametrize("start", [-1.0, 0.0, 0.1, 3.0])
def test_a_round_starts_with_a_mask_of_one(start: float) -> None:
    weight = torch.randn(4, 5, dtype=torch.float64)
    pruner = in_training(CS(threshold_init=start), weight)
    torch.testing.assert_close(pruner(weight), weight)
    assert pruner.factor == pytest.approx(1 / torch.sigmoid(torch.tensor(start, dtype=torch.float64)).item())


@given(epochs=st.integers(1, 9), temperature=st.integers(1, 500), pretraining=st.integers(0, 3))
def test_the_temperature_rises_geometrically_within_each_round(epochs: int, temperature: int, pretraining: int) -> None:
    weight = torch.randn(2, 3)
    pruner = CS(final_temp=temperature).pruner(weight, nn.Linear)
    for _ in range(pretraining):
        pruner.on_epoch_end(weight)
    pruner.on_stage_start(pquant.Stage.TRAIN, pquant.Horizon(epochs, 3, 2))
    for round_ in range(2):
        for epoch in range(epochs):
            wanted = temperature ** (epoch / (epochs - 1)) if epochs > 1 else temperature
            assert float(pruner.beta) == pytest.approx(wanted, rel=1e-5)
            pruner.on_epoch_end(weight)
        if round_ == 0:
            pruner.on_round_end(weight)


def test_a_hot_mask_is_the_deployed_one() -> None:
    weight = torch.randn(30, 30)
    pruner = in_training(CS(final_temp=10_000, threshold_init=0.5), weight, epochs=2)
    torch.nn.init.normal_(pruner.score)
    pruner.on_epoch_end(weight)
    away = pruner.score.abs() > 0.01
    soft = pruner(weight)
    hard = pruner.eval()(weight)
    torch.testing.assert_close(soft[away], hard[away])
    torch.testing.assert_close(hard, pruner.factor * weight * (pruner.score > 0))


def test_gradients_in_closed_form() -> None:
    weight = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    pruner = in_training(CS(threshold_init=-0.3, final_temp=50), weight.detach(), epochs=3)
    pruner.on_epoch_end(weight)
    torch.nn.init.normal_(pruner.score)
    direction = torch.randn(3, 4, dtype=torch.float64)
    (pruner(weight) * direction).sum().backward()
    gate = torch.sigmoid(pruner.beta * pruner.score.detach())
    torch.testing.assert_close(weight.grad, direction * gate * pruner.factor)
    torch.testing.assert_close(pruner.score.grad, direction * weight.detach() * pruner.factor * pruner.beta * gate * (1 - gate))


@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_the_loss_is_the_decay_times_the_sum_of_the_mask(decay: float) -> None:
    weight = torch.randn(3, 4)
    pruner = in_training(CS(threshold_decay=decay, threshold_init=0.2), weight)
    assert pruner.penalty(weight).item() == pytest.approx(decay * 12, rel=1e-6)
    assert pruner.optimizer_options == {"weight_decay": 0.0}


def test_a_round_ends_with_scores_that_keep_what_is_pruned_out() -> None:
    weight = torch.randn(2, 2)
    pruner = in_training(CS(threshold_init=0.1, final_temp=200), weight, epochs=2, rounds=2)
    pruner.score.data.copy_(torch.tensor([[-0.5, 0.5], [0.001, -0.001]]))
    pruner.on_epoch_end(weight)
    pruner.on_round_end(weight)
    torch.testing.assert_close(pruner.score.detach(), torch.tensor([[-100.0, 0.1], [0.1, -0.2]]))
    assert pruner.beta.item() == 1.0 and pruner(weight)[0, 0].item() == 0.0


def test_fine_tuning_keeps_the_factor_in_the_weights() -> None:
    model = pquant.compress(nn.Linear(6, 5), CS(threshold_init=0.0))
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(2, 3))
    weight = model.weight.detach().clone()
    model.pruner.score.data.copy_(torch.where(torch.arange(30).view(5, 6) % 3 == 0, -1.0, 1.0))
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    torch.testing.assert_close(pquant.finalize(model).weight, 2 * weight * (torch.arange(30).view(5, 6) % 3 != 0))


def test_more_decay_prunes_more() -> None:
    kept = []
    for decay in (0.0, 1e-3, 1e-2):
        torch.manual_seed(0)
        model = pquant.compress(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1)), CS(threshold_decay=decay, threshold_init=0.05))
        pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(10, 5))
        optimizer = torch.optim.Adam(pquant.parameter_groups(model), 1e-2)
        x = torch.randn(64, 8)
        for _ in range(10):
            for _ in range(5):
                optimizer.zero_grad()
                ((model(x) - x[:, :1]).square().mean() + pquant.penalty(model)).backward()
                optimizer.step()
            pquant.on_epoch_end(model)
        kept.append(sum(int(layer.pruner.train_mask(layer.weight).sum()) for layer in pruned_layers(model).values()))
    assert kept[0] > kept[1] > kept[2]


def test_what_leaves_sparsity_to_chance_is_warned_of() -> None:
    assert "threshold_decay is 0" in CS().warnings(pquant.Horizon(5, 5))[0]
    assert "only one" in CS(threshold_decay=1e-4).warnings(pquant.Horizon(1, 5))[0]
    assert not CS(threshold_decay=1e-4).warnings(pquant.Horizon(5, 5))


@pytest.mark.parametrize("wrong", [{"final_temp": 0}, {"final_temp": 1.5}, {"threshold_init": math.inf}, {"threshold_decay": -1.0}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"CS.{next(iter(wrong))}"):
        CS(**wrong)

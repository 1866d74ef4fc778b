"""AutoSparse: soft thresholds, the annealed gradient, autotuning."""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.pruning import AutoSparse
from pquant.pruning.autosparse import AUTOTUNE_STEP, AutoSparsePruner, expected

SHAPES = [(4, 3), (4, 3, 5), (4, 1, 2, 2), (4, 3, 2, 2, 2)]


def in_training(method: AutoSparse, weight: Tensor, epochs: int = 10, rounds: int = 1) -> AutoSparsePruner:
    pruner = method.pruner(weight, nn.Linear)
    pruner.on_stage_start(pquant.Stage.TRAIN, pquant.Horizon(epochs, 3, rounds))
    return pruner


@pytest.mark.parametrize("kind", ["channelwise", "layerwise", "weightwise"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_value_and_gradients_in_closed_form(kind: str, shape: tuple, alpha: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape, dtype=torch.float64)
    weight.flatten()[0] = 0
    weight.requires_grad_()
    pruner = in_training(AutoSparse(alpha=alpha, threshold_init=0.5, threshold_type=kind), weight.detach())
    w, t, direction = weight.detach(), torch.sigmoid(torch.tensor(0.5, dtype=torch.float64)), torch.randn(shape, dtype=torch.float64)
    out = pruner(weight)
    out.backward(direction)
    passed = torch.where(w.abs() > t, direction, alpha * direction)
    torch.testing.assert_close(out.detach(), w.sign() * (w.abs() - t).clamp(min=0))
    torch.testing.assert_close(weight.grad, passed)
    by_threshold = -(passed * w.sign()).sum_to_size(pruner.threshold.shape) * t * (1 - t)
    torch.testing.assert_close(pruner.threshold.grad, by_threshold)


def test_a_threshold_far_below_leaves_the_weights() -> None:
    weight = torch.randn(5, 5)
    assert torch.equal(in_training(AutoSparse(threshold_init=-100.0), weight)(weight), weight)


@given(epochs=st.integers(1, 60), alpha=st.floats(0, 1), reset=st.integers(0, 80), pretraining=st.integers(0, 3), rounds=st.integers(1, 3))
def test_alpha_falls_from_its_start_to_zero_over_all_rounds(epochs: int, alpha: float, reset: int, pretraining: int, rounds: int) -> None:
    weight = torch.randn(2, 2)
    pruner = AutoSparse(alpha=alpha, alpha_reset_epoch=reset, autotune_epochs=0).pruner(weight, nn.Linear)
    for _ in range(pretraining):
        pruner.on_epoch_end(weight, 1.0)
    pruner.on_stage_start(pquant.Stage.TRAIN, pquant.Horizon(epochs, 3, rounds))
    seen = []
    for epoch in range(epochs * rounds):
        x = epoch / (epochs * rounds)
        decay = max((1 + math.cos(math.pi * x)) / 2, 1 - 1 / (1 + math.exp(6 - 12 * x)))
        assert float(pruner.alpha) == pytest.approx(alpha * decay if epoch < reset else 0.0, abs=1e-6)
        seen.append(float(pruner.alpha))
        pruner.on_epoch_end(weight, 1.0)
    assert seen == sorted(seen, reverse=True) and (reset == 0 or seen[0] == pytest.approx(alpha))
    assert float(pruner.alpha) < 0.003 * max(alpha, 1e-9) + 1e-9


def test_a_sparse_backward_pass_spares_the_half_with_the_lowest_distance() -> None:
    weight = torch.tensor([[0.9, -0.7, 0.1, -0.2]], dtype=torch.float64, requires_grad=True)
    pruner = in_training(AutoSparse(alpha=0.5, threshold_init=0.0, backward_sparsity=True), weight.detach())
    pruner(weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[1.0, 1.0, 0.0, 0.0]]
    assert pruner.threshold.grad is not None and pruner.threshold.grad.item() == pytest.approx(-(1 - 1) * 0.25)


@pytest.mark.parametrize(
    ("pretraining", "training", "direction"),
    [((1.0, 0.5, 1 / 3), 0.30, 1), ((1.0, 0.5, 1 / 3), 0.20, -1), ((), 1.0, -1)],
)
def test_autotuning_compares_with_the_trend_of_pretraining(pretraining: Sequence[float], training: float, direction: int) -> None:
    weight = torch.randn(2, 2)
    pruner = AutoSparse(alpha=0.5, autotune_epochs=1).pruner(weight, nn.Linear)
    for loss in pretraining:
        pruner.on_epoch_end(weight, loss)
    pruner.on_stage_start(pquant.Stage.TRAIN, pquant.Horizon(10, 3))
    pruner.on_epoch_end(weight, training)
    assert pruner.alpha0 == pytest.approx(0.5 + direction * AUTOTUNE_STEP)
    pruner.on_epoch_end(weight, 100.0)
    assert pruner.alpha0 == pytest.approx(0.5 + direction * AUTOTUNE_STEP)


def test_autotuning_stays_within_zero_and_one_and_asks_for_the_loss() -> None:
    weight = torch.randn(2, 2)
    for alpha, loss, bound in ((0.98, 9.0, 1.0), (0.02, 0.0, 0.0)):
        pruner = AutoSparse(alpha=alpha, autotune_epochs=3).pruner(weight, nn.Linear)
        pruner.on_epoch_end(weight, 1.0)
        pruner.on_stage_start(pquant.Stage.TRAIN, pquant.Horizon(10, 3))
        pruner.on_epoch_end(weight, loss)
        assert pruner.alpha0 == bound
    with pytest.warns(UserWarning, match="without the training loss"):
        pruner.on_epoch_end(weight)


@given(power=st.floats(-2, 0), first=st.floats(0.1, 10), count=st.integers(2, 8), ahead=st.integers(1, 5))
def test_the_trend_of_a_power_law_is_continued(power: float, first: float, count: int, ahead: int) -> None:
    losses = [first * (n + 1) ** power for n in range(count + ahead)]
    assert expected(losses[:count], ahead) == pytest.approx(losses[-1], rel=1e-6)


@pytest.mark.parametrize("losses", [[0.7], [1.0, -0.1, 0.7], [0.0, 0.7]])
def test_where_no_power_law_fits_the_last_loss_stands(losses: list[float]) -> None:
    assert expected(losses, 3) == 0.7


def test_fine_tuning_goes_on_from_the_shrunk_weights() -> None:
    model = pquant.compress(nn.Linear(6, 5), AutoSparse(threshold_init=-1.5))
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(4, 3))
    weight, t = model.weight.detach().clone(), torch.sigmoid(torch.tensor(-1.5))
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    torch.testing.assert_close(model.weight.detach(), weight.sign() * (weight.abs() - t).clamp(min=0))
    assert torch.equal(model.pruner.mask, weight.abs() > t)


def test_threshold_decay_is_the_weight_decay_of_the_logits_alone() -> None:
    model = pquant.compress(nn.Linear(3, 4), AutoSparse(threshold_decay=0.2))
    first, second = pquant.parameter_groups(model)
    assert "weight_decay" not in first
    assert second == {"params": [model.pruner.threshold], "weight_decay": 0.2}


def test_schedules_beyond_training_are_warned_of() -> None:
    horizon = pquant.Horizon(20, 5)
    reset, tune = AutoSparse(alpha_reset_epoch=90, autotune_epochs=30).warnings(horizon)
    assert "alpha_reset_epoch = 90" in reset and "18" in reset
    assert "autotune_epochs = 30" in tune
    assert not AutoSparse(alpha_reset_epoch=18, autotune_epochs=4).warnings(horizon)


@pytest.mark.parametrize("sparse", [False, True])
def test_a_step_does_not_wait_for_the_device(sparse: bool, no_host_sync: Callable) -> None:
    weight = torch.randn(6, 6, requires_grad=True)
    pruner = in_training(AutoSparse(backward_sparsity=sparse), weight.detach())
    with no_host_sync():
        pruner(weight).sum().backward()
        pruner.on_batch_end(weight)


@pytest.mark.parametrize(
    "wrong", [{"alpha": 1.2}, {"alpha": math.nan}, {"alpha_reset_epoch": -1}, {"autotune_epochs": 0.5}, {"threshold_type": "row"}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"AutoSparse.{next(iter(wrong))}"):
        AutoSparse(**wrong)

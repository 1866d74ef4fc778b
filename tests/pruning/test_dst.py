"""DST against the formulas of its paper."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.pruning import DST
from pquant.pruning.dst import DSTPruner
from pquant.training import Stage

SHAPES = [(4, 3), (4, 3, 5), (4, 3, 2, 2), (4, 1, 2, 2, 2)]


def in_training(method: DST, weight: Tensor, threshold: float | None = None) -> DSTPruner:
    pruner = method.pruner(weight, nn.Linear)
    pruner.on_stage_start(Stage.TRAIN)
    if threshold is not None:
        nn.init.constant_(pruner.threshold, threshold)
    return pruner.train()


def step(pruner: DSTPruner, weight: Tensor) -> Tensor:
    """Make what a training step makes of the pruner, without the optimizer."""
    masked = pruner(weight)
    pruner.on_batch_end(weight)
    return masked


@pytest.mark.parametrize(("q", "slope"), [(0.0, 2.0), (0.2, 1.2), (0.4, 0.4), (0.7, 0.4), (1.1, 0.0), (-0.2, 1.2), (-0.45, 0.4)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_long_tailed_estimator(q: float, slope: float, sign: int) -> None:
    weight = torch.tensor([[sign * (0.5 + q)]], dtype=torch.float64, requires_grad=True)
    pruner = in_training(DST(), weight.detach(), 0.5)
    masked = pruner(weight)
    masked.backward(torch.full_like(masked, 3.0))
    kept = float(q > 0)
    assert masked.item() == weight.item() * kept
    assert weight.grad is not None and pruner.threshold.grad is not None
    assert weight.grad.item() == pytest.approx(3 * (kept + abs(weight.item()) * slope))
    assert pruner.threshold.grad.item() == pytest.approx(-3 * weight.item() * slope)


@pytest.mark.parametrize("kind", ["channelwise", "layerwise", "weightwise"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_threshold_gathers_the_gradient_of_all_weights_it_governs(kind: str, shape: tuple) -> None:
    torch.manual_seed(0)
    weight, gradient = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    pruner = in_training(DST(threshold_type=kind), weight, 0.3)
    pruner(weight).backward(gradient)
    distance = (weight.abs() - 0.3).abs()
    slope = torch.where(distance <= 0.4, 2 - 4 * distance, torch.where(distance <= 1, 0.4, 0.0))
    expected = (-gradient * weight * slope).sum_to_size(pruner.threshold.shape)
    torch.testing.assert_close(pruner.threshold.grad, expected)
    assert pruner.threshold.numel() == {"channelwise": 4, "layerwise": 1, "weightwise": weight.numel()}[kind]


def test_masked_weights_within_reach_get_gradient_and_may_come_back() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.0]], requires_grad=True)
    pruner = in_training(DST(), weight.detach(), 0.5)
    pruner(weight).sum().backward()
    assert weight.grad is not None and (weight.grad[0, :2] > 0).all()
    assert not pruner.hard_mask(weight).any()
    assert pruner.hard_mask(weight * 10).tolist() == [[True, True, False]]


def test_threshold_init_is_where_thresholds_start() -> None:
    weight = torch.tensor([[0.0, 0.29, -0.31]])
    assert in_training(DST(), weight).hard_mask(weight).tolist() == [[False, True, True]]
    assert in_training(DST(threshold_init=0.3), weight).hard_mask(weight).tolist() == [[False, False, True]]
    assert in_training(DST(threshold_init=-0.1), weight).hard_mask(weight).all()


def test_the_loss_is_alpha_times_the_sum_of_exp_minus_t_in_training_only() -> None:
    weight = torch.randn(4, 3, dtype=torch.float64)
    pruner = in_training(DST(alpha=0.25, threshold_type="weightwise"), weight)
    with torch.no_grad():
        pruner.threshold.copy_(torch.randn(4, 3))
    loss = pruner.penalty(weight)
    loss.backward()
    torch.testing.assert_close(loss, 0.25 * torch.exp(-pruner.threshold).sum())
    torch.testing.assert_close(pruner.threshold.grad, -0.25 * torch.exp(-pruner.threshold))
    for other in (Stage.PRETRAIN, Stage.FINETUNE):
        pruner.stage = other
        assert pruner.penalty(weight) == 0


def test_the_penalty_of_a_model_sums_over_its_layers() -> None:
    model = pquant.compress(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), DST(alpha=0.5, threshold_init=1.0))
    assert pquant.penalty(model) == 0
    pquant.set_stage(model, Stage.TRAIN)
    assert pquant.penalty(model).item() == pytest.approx(0.5 * 6 * math.exp(-1))


@pytest.mark.parametrize(("bound", "resets"), [(0.69, True), (0.7, True), (0.71, False)])
@pytest.mark.parametrize("kind", ["channelwise", "layerwise", "weightwise"])
def test_the_guard_fires_exactly_at_the_bound(bound: float, resets: bool, kind: str) -> None:
    weight = torch.arange(1.0, 11.0).view(2, 5)
    pruner = in_training(DST(max_pruning_pct=bound, threshold_type=kind), weight, 7.5)
    step(pruner, weight)
    assert (pruner.threshold == (0 if resets else 7.5)).all()


@given(st.integers(1, 40), st.integers(1, 100))
def test_the_guard_counts_without_rounding_errors(size: int, percent: int) -> None:
    for pruned in {0, size * percent // 100, min(size, size * percent // 100 + 1), size}:
        weight = torch.arange(1.0, size + 1).view(1, size)
        pruner = in_training(DST(max_pruning_pct=percent / 100), weight, pruned + 0.5)
        step(pruner, weight)
        assert (pruner.threshold.item() == 0) is (100 * pruned >= percent * size)


@given(st.integers(2, 40), st.integers(2, 100), st.sampled_from(["channelwise", "layerwise", "weightwise"]))
def test_clamped_thresholds_leave_as_much_as_the_bound_asks(size: int, percent: int, kind: str) -> None:
    weight = torch.arange(1.0, 2 * size + 1).view(2, size)
    pruner = in_training(DST(max_pruning_pct=percent / 100, beyond_max="clamp", threshold_type=kind), weight, 1000.0)
    step(pruner, weight)
    pruned = int((~pruner.hard_mask(weight)).sum())
    assert pruned < percent / 100 * weight.numel() or pruned == 1
    assert pruned + 1 >= percent / 100 * weight.numel()
    before = pruner.threshold.detach().clone()
    step(pruner, weight)
    assert torch.equal(pruner.threshold, before)


def test_the_guard_sleeps_outside_training() -> None:
    weight = torch.arange(1.0, 11.0).view(2, 5)
    pruner = in_training(DST(max_pruning_pct=0.5), weight, 9.5)
    pruner.eval()
    pruner(weight), pruner.hard_mask(weight), pruner.penalty(weight)
    assert (pruner.threshold == 9.5).all()
    pruner.train()
    for other in (Stage.PRETRAIN, Stage.FINETUNE):
        pruner.stage = other
        step(pruner, weight)
        assert (pruner.threshold == 9.5).all()


def test_a_step_does_not_wait_for_the_device(no_host_sync: Callable) -> None:
    weight = nn.Parameter(torch.arange(1.0, 11.0).view(2, 5))
    pruner = in_training(DST(max_pruning_pct=0.5), weight.detach(), 9.5)
    with no_host_sync():
        (pruner(weight).sum() + pruner.penalty(weight)).backward()
        pruner.on_batch_end(weight)
    assert (pruner.threshold == 0).all()


def test_more_alpha_prunes_more() -> None:
    def trained(alpha: float) -> float:
        torch.manual_seed(0)
        model = pquant.compress(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2)), DST(alpha=alpha))
        x = torch.randn(64, 8)
        optimizer = torch.optim.Adam(pquant.parameter_groups(model), lr=1e-2)
        pquant.set_stage(model, Stage.TRAIN)
        for _ in range(60):
            optimizer.zero_grad()
            (nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long()) + pquant.penalty(model)).backward()
            optimizer.step()
            pquant.on_batch_end(model)
        return pquant.sparsity(model)

    shares = [trained(alpha) for alpha in (0.0, 1e-2, 1e-1)]
    assert shares == sorted(shares) and shares[0] < shares[1] < shares[2]


@pytest.mark.parametrize("decay", [0.0, 0.02])
def test_threshold_decay_is_the_weight_decay_of_thresholds_alone(decay: float) -> None:
    model = pquant.compress(nn.Linear(3, 4), DST(threshold_decay=decay))
    weights, thresholds = torch.optim.SGD(pquant.parameter_groups(model), lr=0.1, weight_decay=0.5).param_groups
    assert (weights["weight_decay"], thresholds["weight_decay"]) == (0.5, decay)
    assert thresholds["params"] == [model.pruner.threshold]


@pytest.mark.parametrize(
    "settings", [{"alpha": -1.0}, {"max_pruning_pct": 0.0}, {"max_pruning_pct": 1.1}, {"threshold_type": "rowwise"}, {"threshold_init": math.nan}]
)
def test_impossible_settings_are_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match=f"DST.{next(iter(settings))}"):
        DST(**settings)

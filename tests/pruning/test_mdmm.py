"""MDMM: the multiplier on problems with a known answer, the metrics and their gradients, and targets that are met."""

import copy
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import pruned_layers
from pquant.pruning import MDMM
from pquant.pruning.mdmm import MDMMPruner
from pquant.quantization import Quantization
from pquant.training import Horizon, Stage

TYPES = ["Equality", "LessThanOrEqual", "GreaterThanOrEqual"]


def in_training(method: MDMM, weight: Tensor) -> MDMMPruner:
    pruner = method.pruner(weight, nn.Linear)
    pruner.on_stage_start(Stage.TRAIN)
    pruner.measure(weight)
    return pruner.train()


def with_zeros(zeros: int, total: int = 20, small: float = 1e-4) -> Tensor:
    """Return a weight (4, total / 4) with ``zeros`` entries that count as zero, and others from 0.1 up."""
    values = torch.linspace(0.1, 1, total, dtype=torch.float64)
    values[:zeros] = torch.linspace(small / 2, small, max(zeros, 1), dtype=torch.float64)[:zeros]
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(total // 2)
    return (values * signs).view(4, -1)


class Position(MDMMPruner):
    """The constraint that the weight itself, a single number, is ``count``, at most or at least that."""

    def metric(self, weight: Tensor) -> Tensor:
        return weight.sum()

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        self.sparsity.copy_(weight.sum())


class Toy(nn.Module):
    """A number, and the constraint on it."""

    def __init__(self, method: MDMM, wanted: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))
        self.pruner = Position(method, self.x)
        self.pruner.count = wanted
        self.pruner.on_stage_start(Stage.TRAIN)

    def minimized(self, optimizer: Callable[..., torch.optim.Optimizer], lr: float, steps: int) -> tuple[float, float]:
        """Return x and lambda where (x - 2)^2 has its minimum under the constraint."""
        stepper = optimizer(pquant.parameter_groups(self), lr=lr)
        for _ in range(steps):
            stepper.zero_grad()
            ((self.x - 2).square().sum() + self.pruner.penalty(self.x)).backward()
            stepper.step()
            self.pruner.on_batch_end(self.x)
        return self.x.item(), self.pruner.multiplier.item()


@pytest.mark.parametrize("use_grad", [False, True])
@pytest.mark.parametrize("damping", [0.0, 1.0])
@pytest.mark.parametrize(
    ("kind", "wanted", "x", "multiplier"),
    [
        ("Equality", 1, 1.0, 2.0),
        ("Equality", 3, 3.0, -2.0),
        ("GreaterThanOrEqual", 3, 3.0, 2.0),
        ("GreaterThanOrEqual", 1, 2.0, 0.0),
        ("LessThanOrEqual", 1, 1.0, 2.0),
        ("LessThanOrEqual", 3, 2.0, 0.0),
    ],
)
def test_a_problem_with_a_known_answer(kind: str, wanted: int, x: float, multiplier: float, damping: float, use_grad: bool) -> None:
    method = MDMM(constraint_type=kind, scale=1.0, damping=damping, constraint_lr=0.1, use_grad=use_grad)
    found = Toy(method, wanted).minimized(torch.optim.SGD, 0.1, 300)
    assert found == pytest.approx((x, multiplier), abs=1e-3)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(torch.optim.AdamW, weight_decay=0.0)], ids=["adam", "adamw"])
def test_adam_maximizes_over_the_multiplier(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    method = MDMM(scale=1.0, damping=5.0, constraint_lr=0.02, use_grad=True)
    assert Toy(method, 1).minimized(optimizer, 0.02, 800) == pytest.approx((1.0, 2.0), abs=1e-2)


def test_with_plain_sgd_use_grad_is_the_explicit_update() -> None:
    tracks = []
    for use_grad in (False, True):
        toy = Toy(MDMM(scale=2.0, damping=1.0, constraint_lr=0.1, use_grad=use_grad), 1)
        stepper = torch.optim.SGD(pquant.parameter_groups(toy), lr=0.0)
        for _ in range(3):
            stepper.zero_grad()
            toy.pruner.penalty(toy.x).backward()
            stepper.step()
            toy.pruner.on_batch_end(toy.x)
        tracks.append(toy.pruner.multiplier.item())
    assert tracks[0] == pytest.approx(-3 * 0.1 * 2.0) and tracks[1] == pytest.approx(tracks[0])


@pytest.mark.parametrize("use_grad", [False, True])
def test_the_multiplier_has_an_optimizer_group_of_its_own_when_it_is_a_parameter(use_grad: bool) -> None:
    model = pquant.compress(nn.Linear(3, 4), MDMM(use_grad=use_grad, constraint_lr=0.03))
    groups = torch.optim.SGD(pquant.parameter_groups(model), lr=0.1, weight_decay=0.5).param_groups
    assert isinstance(model.pruner.multiplier, nn.Parameter) is use_grad and len(groups) == 1 + use_grad
    assert (groups[0]["maximize"], groups[0]["lr"], groups[0]["weight_decay"]) == (False, 0.1, 0.5)
    if use_grad:
        assert (groups[1]["maximize"], groups[1]["lr"], groups[1]["weight_decay"]) == (True, 0.03, 0.0)


def test_the_multiplier_has_both_signs_for_equality_and_one_for_inequalities() -> None:
    too_dense, too_sparse = with_zeros(2), with_zeros(18)
    signs = {}
    for kind in TYPES:
        pruner = in_training(MDMM(constraint_type=kind, target_sparsity=0.5, scale=2.0, constraint_lr=0.1), too_dense)
        moves = []
        for weight in (too_dense, too_sparse):
            for _ in range(2):
                pruner.on_batch_end(weight)
                moves.append(round(pruner.multiplier.item(), 6))
        signs[kind] = moves
    assert signs["Equality"] == [-0.08, -0.16, -0.08, 0.0]
    assert signs["GreaterThanOrEqual"] == [0.08, 0.16, 0.128, 0.1024]
    assert signs["LessThanOrEqual"] == [0.0, 0.0, 0.08, 0.16]


@pytest.mark.parametrize(("mode", "expected"), [("coarse", 4 / 20), ("smooth", (2**-0.25 + 0.5 + 2**-1.5625 + 2**-4) / 20)])
def test_zeros_are_counted_hard_or_smoothly(mode: str, expected: float) -> None:
    weight = with_zeros(0)
    weight.view(-1)[:4] = torch.tensor([0.5e-2, -1.0e-2, 1.25e-2, -2.0e-2], dtype=torch.float64)
    pruner = in_training(MDMM(epsilon=1e-2, l0_mode=mode), weight)
    assert pruner.metric(weight).item() == pytest.approx(expected if mode == "smooth" else 2 / 20)


def test_epsilon_is_the_largest_size_that_counts_as_zero() -> None:
    weight = torch.tensor([[0.05, -0.1, 0.2, -0.4]], dtype=torch.float64)
    for epsilon, zeros in ((0.04, 0), (0.1, 2), (0.3, 3)):
        pruner = in_training(MDMM(epsilon=epsilon, project=False), weight)
        assert pruner.metric(weight) == zeros / 4
        assert pruner.hard_mask(weight).tolist() == [[index >= zeros for index in range(4)]]


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("damping", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("multiplier", [-0.4, 0.0, 0.7])
@pytest.mark.parametrize("zeros", [3, 17])
def test_loss_and_gradients_in_closed_form(kind: str, damping: float, multiplier: float, zeros: int) -> None:
    if kind != "Equality" and multiplier < 0:
        return
    weight = with_zeros(zeros).requires_grad_()
    method = MDMM(constraint_type=kind, target_sparsity=0.5, scale=3.0, damping=damping, use_grad=True)
    pruner = in_training(method, weight.detach())
    nn.init.constant_(pruner.multiplier, multiplier)
    loss = pruner.penalty(weight)
    loss.backward()
    excess = zeros / 20 - 0.5
    sign = -1 if kind == "GreaterThanOrEqual" else 1
    h = sign * excess if kind == "Equality" or not damping else max(sign * excess, -multiplier / damping)
    assert loss.item() == pytest.approx(3 * (multiplier * h + damping * h * h / 2))
    assert pruner.multiplier.grad.item() == pytest.approx(3 * (h if h == sign * excess else 0.0))
    pull = 3 * sign * (multiplier + damping * h)
    smallest = weight.abs() <= weight.abs().flatten().kthvalue(10).values
    torch.testing.assert_close(weight.grad, -pull * smallest * weight.sign() / weight.abs().sum())


@settings(max_examples=25)
@given(st.data())
def test_the_pull_is_the_finite_difference_of_the_trimmed_lasso(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 2**30)))
    shape = data.draw(st.sampled_from([(4, 6), (3, 5), (2, 3, 3), (4, 1, 2, 2), (2, 2, 2, 2, 2), (1, 1)]))
    rf = data.draw(st.integers(1, 4))
    method = MDMM(metric_type="StructuredSparsity", rf=rf, target_sparsity=data.draw(st.sampled_from([0.3, 0.6, 1.0])), scale=1.0, epsilon=1e-12)
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    pruner = in_training(method, weight.detach())

    def trimmed(value: Tensor) -> Tensor:
        rows = [row.split(rf) for row in value.flatten(1)]
        return torch.stack([group.norm() for row in rows for group in row]).sort().values[: pruner.count].sum()

    pruner.penalty(weight).backward()
    h = -round(method.target * pruner.groups) / pruner.groups
    total = pruner.sizes(weight).sum().item()
    for index in range(min(weight.numel(), 6)):
        step = torch.zeros(weight.numel(), dtype=torch.float64)
        step[index] = 1e-6
        slope = (trimmed(weight.detach() + step.view(shape)) - trimmed(weight.detach() - step.view(shape))) / 2e-6
        assert weight.grad.flatten()[index].item() == pytest.approx(-h * slope.item() / total, abs=1e-7)


def test_groups_are_rf_consecutive_weights_of_a_row() -> None:
    weight = torch.tensor([[3.0, 4, 0, 0, 0.3], [0, 0, 6, 8, 0]])
    pruner = in_training(MDMM(metric_type="StructuredSparsity", rf=2, target_sparsity=0.5, project=False), weight)
    torch.testing.assert_close(pruner.sizes(weight), torch.tensor([[5.0, 0, 0.3], [0, 10, 0]]))
    assert pruner.groups == 6 and pruner.metric(weight) == 0.5
    assert pruner.hard_mask(weight).tolist() == [[True, True, False, False, True], [False, False, True, True, False]]
    kernel = torch.zeros(2, 1, 1, 3)
    kernel[0, 0, 0, 2] = 1
    pruner = in_training(MDMM(metric_type="StructuredSparsity", rf=2, target_sparsity=0.75, project=False), kernel)
    assert pruner.hard_mask(kernel).tolist() == [[[[False, False, True]]], [[[False, False, False]]]]
    assert in_training(MDMM(rf=2), weight).groups == 10


def test_groups_with_a_norm_of_zero_have_a_finite_gradient() -> None:
    weight = torch.zeros(2, 4, requires_grad=True)
    in_training(MDMM(metric_type="StructuredSparsity", rf=2), weight.detach()).penalty(weight).backward()
    assert weight.grad.isfinite().all()


@pytest.mark.parametrize(("field", "factor"), [({"scale": 30.0}, 3), ({"scale_mode": "sum"}, 20), ({"damping": 4.0}, 4)])
def test_what_the_loss_is_multiplied_with(field: dict[str, Any], factor: float) -> None:
    weight = with_zeros(2)
    plain, changed = in_training(MDMM(), weight), in_training(MDMM(**field), weight)
    assert changed.penalty(weight).item() == pytest.approx(factor * plain.penalty(weight).item())


@pytest.mark.parametrize(("field", "factor"), [({"scale": 30.0}, 3), ({"constraint_lr": 5e-3}, 5), ({"scale_mode": "sum"}, 1)])
def test_what_the_multiplier_moves_by(field: dict[str, Any], factor: float) -> None:
    weight = with_zeros(2)
    plain, changed = in_training(MDMM(), weight), in_training(MDMM(**field), weight)
    plain.on_batch_end(weight), changed.on_batch_end(weight)
    assert plain.multiplier.item() == pytest.approx(-1e-3 * 10 * 0.8)
    assert changed.multiplier.item() == pytest.approx(factor * plain.multiplier.item())


@pytest.mark.parametrize(("fields", "target"), [({}, 0.9), ({"target_sparsity": 0.4}, 0.4), ({"target_value": 0.3}, 0.3)])
@pytest.mark.parametrize("metric", ["UnstructuredSparsity", "StructuredSparsity"])
def test_the_target_is_target_value_or_else_target_sparsity(fields: dict[str, float], target: float, metric: str) -> None:
    method = MDMM(metric_type=metric, **fields)
    assert method.target == target and in_training(method, with_zeros(0)).count == round(20 * target)


def test_reads_pretraining_and_fine_tuning_leave_the_multiplier_alone() -> None:
    weight = with_zeros(2)
    pruner = MDMM().pruner(weight, nn.Linear)
    for stage in (Stage.PRETRAIN, Stage.FINETUNE):
        pruner.stage = stage
        pruner.on_batch_end(weight)
        assert pruner.penalty(weight) == 0 and pruner.multiplier == 0
    pruner.stage = Stage.TRAIN
    for mode in (True, False):
        pruner.train(mode)
        pruner(weight), pruner.penalty(weight), pruner.hard_mask(weight), pruner.metric(weight)
    assert pruner.multiplier == 0
    pruner.on_batch_end(weight)
    assert pruner.multiplier != 0


@pytest.mark.parametrize("use_grad", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.SGD])
def test_an_overshoot_comes_back(optimizer: type[torch.optim.Optimizer], use_grad: bool) -> None:
    torch.manual_seed(0)
    model = pquant.compress(nn.Linear(20, 10, bias=False), MDMM(target_sparsity=0.5, scale=1.0, constraint_lr=1e-2, use_grad=use_grad))
    with torch.no_grad():
        model.weight.mul_(9e-4 / model.weight.abs().max())
    stepper = optimizer(pquant.parameter_groups(model), lr=2e-3)
    pquant.set_stage(model, Stage.TRAIN)
    for _ in range(200):
        stepper.zero_grad()
        pquant.penalty(model).backward()
        stepper.step()
        pquant.on_batch_end(model)
    assert model.pruner.metric(model.weight).item() == pytest.approx(0.5, abs=0.02)


def test_training_is_dense() -> None:
    weight = with_zeros(10)
    assert in_training(MDMM(), weight)(weight) is weight


@pytest.mark.parametrize(
    ("kind", "zeros", "pruned"),
    [
        ("Equality", 48, 50),
        ("Equality", 52, 50),
        ("Equality", 44, 44),
        ("Equality", 56, 56),
        ("GreaterThanOrEqual", 48, 50),
        ("GreaterThanOrEqual", 52, 52),
        ("GreaterThanOrEqual", 44, 44),
        ("LessThanOrEqual", 52, 50),
        ("LessThanOrEqual", 48, 48),
        ("LessThanOrEqual", 56, 56),
    ],
)
def test_a_mask_near_its_target_is_projected_to_it(kind: str, zeros: int, pruned: int) -> None:
    weight = with_zeros(zeros, 100)
    for project in (True, False):
        pruner = in_training(MDMM(constraint_type=kind, target_sparsity=0.5, project=project), weight).eval()
        shown = pruner(weight)
        expected = pruned if project else zeros
        assert shown.count_nonzero() == 100 - expected
        assert weight[shown == 0].abs().max() < weight[shown != 0].abs().min()
        pruner.freeze(weight)
        assert torch.equal(pruner(weight), shown) and torch.equal(pruner.mask, shown != 0)


def test_the_log_says_which_layers_were_projected_and_which_missed(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(*(nn.Linear(25, 4, bias=False) for _ in range(3)))
    model = pquant.compress(net, MDMM(target_sparsity=0.5))
    pquant.set_stage(model, Stage.TRAIN)
    with torch.no_grad():
        for layer, zeros in zip(model, (50, 48, 40), strict=True):
            layer.pruner.count = 50
            layer.weight.copy_(with_zeros(zeros, 100))
    with caplog.at_level(logging.INFO, "pquant"):
        pquant.set_stage(model, Stage.FINETUNE)
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "MDMM: training left layer '1' 2.00 points from its target sparsity of 0.5000; projected to it"),
        ("WARNING", "MDMM: training left layer '2' 10.00 points from its target sparsity of 0.5000; not projected to it"),
    ]


def test_targets_are_shared_out_by_one_threshold_over_the_layers_that_take_part() -> None:
    net = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 4), nn.Linear(4, 5))
    with torch.no_grad():
        net[1].weight.fill_(100)
    model = pquant.compress(net, MDMM(target_sparsity=0.5, disable_pruning_for_layers=["2"]))
    pquant.set_stage(model, Stage.TRAIN)
    assert [layer.pruner.count for layer in pruned_layers(model).values()] == [70, 0]
    assert [layer.pruner.name for layer in pruned_layers(model).values()] == ["0", "1"]


def blobs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(0, 4, (256,), generator=generator)
    return torch.randn(256, 16, generator=generator) + 2 * torch.eye(4, 16)[y], y


def trained(method: MDMM, steps: int = 240, quantization: Quantization | None = None, lr: float = 5e-3) -> nn.Module:
    torch.manual_seed(0)
    x, y = blobs()
    net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    model = pquant.compress(net, method, quantization, x)
    optimizer = torch.optim.Adam(pquant.parameter_groups(model), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, 1e-5)
    for step in range(steps):
        if step == steps // 6:
            pquant.set_stage(model, Stage.TRAIN)
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model.train()(x), y) + pquant.penalty(model)).backward()
        optimizer.step()
        schedule.step()
        pquant.on_batch_end(model)
    pquant.set_stage(model, Stage.FINETUNE)
    return model


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_grad": True},
        {"l0_mode": "smooth"},
        {"scale_mode": "sum", "scale": 0.1},
        {"constraint_type": "GreaterThanOrEqual"},
        {"metric_type": "StructuredSparsity", "rf": 4},
        {"target_sparsity": 0.5},
    ],
    ids=str,
)
def test_the_target_is_met_and_the_task_still_learnt(fields: dict[str, Any]) -> None:
    bits = Quantization(
        default_weight_keep_negatives=True,
        default_weight_integer_bits=1,
        default_weight_fractional_bits=7,
        default_data_keep_negatives=True,
        default_data_integer_bits=4,
        default_data_fractional_bits=4,
    )
    final = pquant.finalize(trained(MDMM(**fields), quantization=bits))
    assert pquant.sparsity(final) == pytest.approx(fields.get("target_sparsity", 0.9), abs=0.01)
    x, y = blobs()
    assert (final(x).argmax(1) == y).float().mean() > 0.7


def test_at_most_is_met_by_a_task_that_would_prune_more() -> None:
    method = MDMM(constraint_type="LessThanOrEqual", target_sparsity=0.5, scale=1.0, constraint_lr=1e-2)
    model = pquant.compress(nn.Linear(20, 10, bias=False), method)
    optimizer = torch.optim.Adam(pquant.parameter_groups(model), lr=2e-3)
    pquant.set_stage(model, Stage.TRAIN)
    for _ in range(400):
        optimizer.zero_grad()
        (1e-4 * model.weight.abs().sum() + pquant.penalty(model)).backward()
        optimizer.step()
        pquant.on_batch_end(model)
    assert model.pruner.metric(model.weight).item() < 0.6
    assert pquant.sparsity(model) <= 0.6


@pytest.mark.parametrize("use_grad", [False, True])
def test_training_goes_on_from_a_saved_state(use_grad: bool) -> None:
    method, x = MDMM(target_sparsity=0.5, use_grad=use_grad, constraint_lr=0.1), torch.randn(8, 6)

    def started() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = pquant.compress(nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3)), method)
        return model, torch.optim.Adam(pquant.parameter_groups(model), lr=1e-2)

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        for _ in range(3):
            optimizer.zero_grad()
            (model(x).square().mean() + pquant.penalty(model)).backward()
            optimizer.step()
            pquant.on_batch_end(model)

    whole, again = started(), started()
    pquant.set_stage(whole[0], Stage.TRAIN)
    steps(*whole)
    for part, other in zip(again, whole, strict=True):
        part.load_state_dict(copy.deepcopy(other.state_dict()))
    steps(*whole), steps(*again)
    for name, value in whole[0].state_dict().items():
        other_value = again[0].state_dict()[name]
        assert torch.equal(value, other_value) if isinstance(value, Tensor) else value == other_value
    assert again[0][0].pruner.multiplier != 0 and again[0][1].pruner.name == "1"


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("fields", [{}, {"metric_type": "StructuredSparsity", "rf": 2}], ids=["unstructured", "structured"])
def test_outputs_stay_from_training_to_fine_tuning_to_finalize(fields: dict[str, Any], first: bool) -> None:
    torch.manual_seed(0)
    quantization = Quantization(
        default_weight_keep_negatives=True, default_weight_fractional_bits=5, quantize_input=False, quantize_output=False, pruning_first=first
    )
    x = torch.randn(9, 6)
    model = pquant.compress(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), MDMM(target_sparsity=0.5, **fields), quantization)
    pquant.set_stage(model, Stage.TRAIN)
    with torch.no_grad():
        for layer in pruned_layers(model).values():
            layer.weight.copy_(layer.weight * (torch.rand_like(layer.weight) > 0.47))
    last = model.eval()(x)
    assert torch.equal(pquant.finalize(model)(x), last)
    pquant.set_stage(model, Stage.FINETUNE)
    assert torch.equal(model.eval()(x), last)
    assert torch.equal(pquant.finalize(model)(x), last)


@pytest.mark.parametrize("fields", [{}, {"l0_mode": "smooth", "metric_type": "StructuredSparsity", "rf": 3}, {"use_grad": True}], ids=str)
def test_a_step_does_not_wait_for_the_device(fields: dict[str, Any], no_host_sync: Callable) -> None:
    model = pquant.compress(nn.Linear(4, 4), MDMM(**fields))
    pquant.set_stage(model, Stage.TRAIN)
    with no_host_sync():
        (model(torch.randn(3, 4)).sum() + pquant.penalty(model)).backward()
        pquant.on_batch_end(model)
        model.eval()(torch.randn(3, 4))


@pytest.mark.parametrize("target", [0.001, 1.0])
@pytest.mark.parametrize("layer", [nn.Linear(1, 1), nn.Linear(1, 3), nn.Linear(3, 1), nn.Conv2d(2, 2, 1, groups=2)])
def test_all_nothing_and_the_smallest_layers(target: float, layer: nn.Module) -> None:
    model = pquant.compress(layer, MDMM(target_sparsity=target))
    pquant.set_stage(model, Stage.TRAIN)
    pquant.penalty(model).backward()
    pquant.on_batch_end(model)
    pquant.set_stage(model, Stage.FINETUNE)
    assert model.weight.grad is not None and model.weight.grad.isfinite().all()


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_value": 1.5},
        {"target_sparsity": -0.1},
        {"rf": 0},
        {"epsilon": 0.0},
        {"scale": -1.0},
        {"damping": -1.0},
        {"constraint_lr": -1.0},
        {"constraint_type": "AtLeast"},
        {"metric_type": "Sparsity"},
        {"l0_mode": "fine"},
        {"scale_mode": "max"},
        {"threshold_decay": 0.1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"MDMM.{next(iter(wrong))}"):
        MDMM(**wrong)


@pytest.mark.parametrize("scale_mode", ["mean", "sum"])
def test_the_optimizer_raises_the_multiplier_as_the_rule_does(scale_mode: str) -> None:
    torch.manual_seed(0)
    weight = torch.randn(16, 8)
    pruners = []
    for use_grad in (False, True):
        method = MDMM(target_sparsity=0.7, scale_mode=scale_mode, use_grad=use_grad)
        pruner = method.pruner(weight, nn.Linear)
        method.prepare({"a": (pruner, weight)})
        pruner.on_stage_start(Stage.TRAIN, Horizon(1, 10))
        pruners.append(pruner)
    by_rule, by_gradient = pruners
    optimizer = torch.optim.SGD([{"params": by_gradient.parameters(), **by_gradient.optimizer_options}], lr=1.0)
    for _ in range(5):
        assert by_gradient.penalty(weight).item() == pytest.approx(by_rule.penalty(weight).item(), rel=1e-5)
        optimizer.zero_grad()
        by_gradient.penalty(weight).backward()
        optimizer.step()
        for pruner in pruners:
            pruner.on_batch_end(weight)
        assert by_gradient.multiplier.item() == pytest.approx(by_rule.multiplier.item(), rel=1e-5)
    assert by_rule.multiplier.item() != 0

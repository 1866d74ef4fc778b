"""All layers of a method in one pass, against the same layers one by one."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.flat import laid
from pquant.layers import CompressedLayer, pruned_layers
from pquant.pruning import CS, DST, MDMM, PDP, AutoSparse, Magnitude, NoPruning, PruningMethod, Wanda, loops
from pquant.pruning.dst import DSTPruner
from pquant.pruning.group import MEASURES, Group, Groups, Measure, OnePass, addresses
from pquant.pruning.method import NoPruner, Pruner

KINDS = ("channelwise", "layerwise", "weightwise")
METHODS: list[PruningMethod] = [
    *(DST(alpha=0.1, threshold_type=kind, max_pruning_pct=0.4, beyond_max=way) for kind in KINDS for way in ("reset", "clamp")),
    *(AutoSparse(threshold_init=-0.5, threshold_type=kind, autotune_epochs=0) for kind in KINDS),
    CS(threshold_decay=0.3, threshold_init=0.2),
    CS(threshold_decay=0.0),
    PDP(sparsity=0.6),
    PDP(sparsity=0.6, temperature_scale="relative"),
    PDP(sparsity=0.6, structured_pruning=True),
    *(MDMM(constraint_type=kind, epsilon=0.3, target_sparsity=0.4) for kind in ("Equality", "LessThanOrEqual", "GreaterThanOrEqual")),
    MDMM(constraint_type="LessThanOrEqual", epsilon=0.3, damping=0.0, target_sparsity=1.0),
    MDMM(use_grad=True, epsilon=0.3, scale_mode="sum", damping=3.0),
    MDMM(use_grad=True, constraint_type="GreaterThanOrEqual", epsilon=0.3, project=False),
    MDMM(metric_type="StructuredSparsity", rf=2, epsilon=0.3, l0_mode="smooth"),
    MDMM(l0_mode="smooth", epsilon=0.3, target_value=0.01),
    Wanda(),
    Magnitude(sparsity=0.5),
]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
HORIZON = pquant.Horizon(epochs=100, steps_per_epoch=1)
LAST_BITS = 1e-6
"""Sums differ by their order, and the sigmoid of torch by where in memory a value lies."""


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(7, 5), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 2, groups=4), nn.Linear(1, 1), nn.Conv1d(1, 6, 1), nn.Linear(4, 1))


@torch.no_grad()
def started(method: PruningMethod, seed: int, kind: str = "normal", double: bool = False) -> nn.Module:
    """Return a compressed network in the train stage, weights and pruners' own parameters drawn by ``kind``."""
    torch.manual_seed(seed)
    model = pquant.compress(network(), method).train()
    if double:
        model.double()
    pquant.set_stage(model, pquant.Stage.TRAIN, HORIZON)
    for layer in pruned_layers(model).values():
        for parameter in layer.parameters():
            value = torch.randn_like(parameter)
            parameter.copy_({"ties": (value * 2).round() / 4, "zeros": value * (torch.rand_like(value) > 0.7), "none": value * 0}.get(kind, value))
        for buffer in layer.pruner.buffers():
            if buffer.is_floating_point() and not buffer.ndim:
                buffer.copy_(torch.rand_like(buffer) + 0.1)
    for _ in range(3):
        pquant.on_epoch_end(model)
    return model


def groups(model: nn.Module) -> Groups:
    return Groups(list(pruned_layers(model).values()))


def one_by_one(model: nn.Module) -> Group:
    return Group(list(pruned_layers(model).values()))


def assert_same_state(model: nn.Module, other: nn.Module) -> None:
    for (name, mine), theirs in zip(model.state_dict().items(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs) if isinstance(mine, Tensor) else mine == theirs, name


def constraint_scale(model: nn.Module) -> float:
    """Return the weight in the loss of all MDMM's constraints: share - target, or lambda + damping h, may nearly cancel."""
    return sum(layer.pruner.scale * (1 + layer.pruner.method.damping) for layer in pruned_layers(model).values() if hasattr(layer.pruner, "scale"))


def check(model: nn.Module, exact: bool) -> None:
    """Compare all that the groups of ``model`` give with what its layers give one by one, and let it follow two steps."""
    other = copy.deepcopy(model)
    near = {"rtol": LAST_BITS, "atol": 1e-9 + LAST_BITS * constraint_scale(model)}
    mine, theirs = groups(model), one_by_one(other)
    masks = mine.masks()
    assert torch.equal(masks, theirs.masks()) and masks.dtype == next(model.parameters()).dtype
    total, expected = sum(mine.penalties(), start=torch.zeros(())), theirs.penalty()
    torch.testing.assert_close(total.to(expected), expected, **near)
    if expected.requires_grad:
        total.backward(), expected.backward()
    for (name, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        left, right = (torch.zeros(()) if grad is None else grad for grad in (one.grad, two.grad))
        assert not exact or torch.equal(left + torch.zeros_like(right), right), name
        torch.testing.assert_close(left + torch.zeros_like(right), right, **near)
    for _ in range(2):
        mine.follow_step(), theirs.follow_step()
        if "smooth" not in str(pruned_layers(model)["0"].pruner.method):
            assert_same_state(model, other)
        with torch.no_grad():
            for one, two in zip(model.parameters(), other.parameters(), strict=True):
                one.mul_(1.25), two.mul_(1.25)
    assert torch.equal(mine.masks(), theirs.masks())


@each_method
@settings(max_examples=5)
@given(seed=st.integers(0, 2**30), kind=st.sampled_from(["normal", "ties", "zeros", "none"]), double=st.booleans())
def test_in_one_pass_is_what_it_is_one_by_one(method: PruningMethod, seed: int, kind: str, double: bool) -> None:
    check(started(method, seed, kind, double), exact=isinstance(method, DST))


@each_method
def test_it_is_so_after_a_resume_in_other_stages_and_for_one_layer(method: PruningMethod) -> None:
    model, again = started(method, 1), pquant.compress(network(), method).train()
    mine = groups(again)
    mine.follow_step()
    again.load_state_dict(model.state_dict())
    assert torch.equal(mine.masks(), one_by_one(model).masks())
    check(again, exact=isinstance(method, DST))
    alone = pquant.compress(nn.Linear(4, 3), method).train()
    pquant.set_stage(alone, pquant.Stage.TRAIN, HORIZON)
    check(nn.Sequential(alone), exact=isinstance(method, DST))
    for stage in (pquant.Stage.PRETRAIN, pquant.Stage.FINETUNE):
        for layer in pruned_layers(again).values():
            layer.pruner.stage = stage
        assert sum(mine.penalties()) == 0 and torch.equal(mine.masks(), torch.ones_like(mine.masks()) * one_by_one(again).masks())


@pytest.mark.parametrize("double", [False, True])
def test_loops_are_taken_for_plain_values_and_only_in_training(double: bool) -> None:
    for method in METHODS:
        model = started(method, 0, double=double)
        mine = groups(model)
        mine.follow_step()
        assert type(mine.groups[0]) is method.group
        if isinstance(mine.groups[0], OnePass) and not getattr(method, "structured_pruning", False):
            assert mine.groups[0].looped is not double
        pquant.set_stage(model, pquant.Stage.PRETRAIN)
        mine.follow_step()
        assert type(mine.groups[0]) is Group


def swap(layer: CompressedLayer) -> None:
    layer.weight = nn.Parameter(-0.1 * layer.weight.detach())


def swap_unseen(layer: CompressedLayer) -> None:
    layer._parameters["weight"] = nn.Parameter(-0.1 * layer.weight.detach())


def parametrize(layer: CompressedLayer) -> None:
    nn.utils.parametrize.register_parametrization(layer, "weight", nn.Hardtanh(-0.1, 0.1), unsafe=True)


@pytest.mark.parametrize("change", [swap, swap_unseen, parametrize])
def test_an_exchanged_weight_is_the_one_looked_at(change) -> None:
    model = started(DST(threshold_init=0.5), 3)
    mine = groups(model)
    before = mine.masks()
    change(model[0])
    assert torch.equal(mine.masks(), one_by_one(model).masks()) and not torch.equal(mine.masks(), before)


def test_several_methods_and_layers_without_one_keep_their_order() -> None:
    left, middle, right = started(DST(), 1), started(NoPruning(), 2), started(MDMM(epsilon=0.3), 3)
    layers = [layer for three in zip(left, middle, right, strict=True) for layer in three]
    mine = Groups(layers)
    assert torch.equal(mine.masks(), Group(layers).masks())
    assert len(mine.penalties()) == 2
    assert 0 < mine.masks().mean() < 1


@pytest.mark.parametrize("method", [DST(), CS(threshold_decay=0.1), MDMM(), Wanda()], ids=lambda method: type(method).__name__)
def test_a_penalty_may_be_added_to_in_place(method: PruningMethod) -> None:
    model = started(method, 0)
    weight, penalty = model[0].weight, pquant.Penalty(model)
    expected = penalty().item() + weight.sum().item()
    loss = penalty()
    loss += weight.sum()
    loss.backward()
    assert loss.item() == pytest.approx(expected) and weight.grad is not None
    assert penalty().item() + weight.sum().item() == pytest.approx(expected)


class Stubborn(DSTPruner):
    def select(self, weight: Tensor) -> Tensor:
        return weight > -torch.inf

    def loss(self, weight: Tensor) -> Tensor:
        return weight.sum()


class StubbornDST(DST):
    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Stubborn:
        return Stubborn(self, weight)


def test_a_subclass_that_gives_other_answers_is_heard() -> None:
    model = started(StubbornDST(), 3)
    assert groups(model).masks().all()
    torch.testing.assert_close(pquant.penalty(model), sum(layer.weight.sum() for layer in pruned_layers(model).values()))


class Lasting(Pruner):
    def penalty(self, weight: Tensor) -> Tensor:
        return weight.square().sum()


class LastingDecay(Wanda):
    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> Lasting:
        return Lasting(self, weight)


def test_a_penalty_of_a_pruner_s_own_counts_in_every_stage() -> None:
    model = started(LastingDecay(), 3)
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    torch.testing.assert_close(pquant.penalty(model), sum(layer.weight.square().sum() for layer in pruned_layers(model).values()))


@pytest.mark.parametrize("method", [DST(max_pruning_pct=0.01), PDP(), MDMM()], ids=str)
def test_autograd_knows_that_a_step_has_written(method: PruningMethod) -> None:
    model = started(method, 0)
    pruner = model[0].pruner
    written = next(getattr(pruner, name) for name in ("threshold", "border", "multiplier") if hasattr(pruner, name))
    loss = (written.clone() if written.requires_grad else torch.ones((), requires_grad=True)) * written
    groups(model).follow_step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_nothing_is_called_once_a_window_has_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = pquant.compress(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), Wanda(t_start_collecting_batch=1, t_delta=2, sparsity=0.5)).train()
    pquant.set_stage(model, pquant.Stage.TRAIN, pquant.Horizon(1, 100))
    events = pquant.training.lifecycle.StepEvents(model)
    for _ in range(3):
        model(torch.rand(5, 4))
        events()
    assert all(layer.pruner.pruned and layer.pruner.step == 3 for layer in model)
    for layer in model:
        monkeypatch.setattr(type(layer.pruner), "on_batch_end", lambda *_: pytest.fail("called"))
    events()


VALUES = st.lists(st.floats(width=32), min_size=1, max_size=40)


@given(st.lists(VALUES, min_size=1, max_size=4), st.floats(width=32, allow_nan=False), st.sampled_from(MEASURES))
def test_what_is_above_is_what_torch_finds_there(layers: list[list[float]], threshold: float, measure: Measure) -> None:
    weights, bound = [nn.Parameter(torch.tensor(values)) for values in layers], torch.tensor(threshold)
    over = laid(tuple(weight.shape for weight in weights), (bound.shape,) * len(weights))
    group = OnePass([SimpleNamespace(weight=weight, pruner=NoPruner()) for weight in weights])
    seen = {"value": Tensor.detach, "magnitude": Tensor.abs, "square": Tensor.square}[measure]
    assert torch.equal(group.above(weights, [bound] * len(weights), over, measure).bool(), torch.cat([seen(weight) > bound for weight in weights]))


@given(st.lists(VALUES, min_size=1, max_size=4), st.data())
def test_borders_lie_halfway_between_the_values_that_torch_ranks(layers: list[list[float]], data: st.DataObject) -> None:
    weights, counts = [torch.tensor(values) for values in layers], [data.draw(st.integers(0, len(values))) for values in layers]
    borders = [torch.zeros(()) for _ in layers]
    sizes = np.array([len(values) for values in layers])
    loops.halfway(addresses(weights), sizes, np.array(counts), addresses(borders))
    for weight, count, border in zip(weights, counts, borders, strict=True):
        if 0 < count < len(weight):
            below, above = (weight.square().kthvalue(rank).values.sqrt() for rank in (count, count + 1))
            torch.testing.assert_close(border, ((below + above) / 2).square(), rtol=0, atol=0, equal_nan=True)
        else:
            assert border == (math.inf if count else -math.inf)

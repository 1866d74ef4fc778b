"""Small parameters updated end to end are, bit for bit, those updated one by one."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, optim

import pquant
from pquant.flat import SMALL
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.training.optimizer import ELEMENTWISE, Updates

HGQ = Quantization(
    default_data_keep_negatives=True,
    default_data_integer_bits=3,
    default_data_fractional_bits=4,
    default_weight_keep_negatives=True,
    default_weight_fractional_bits=5,
    use_hgq=True,
    hgq_beta=1e-6,
    hgq_lr=0.02,
)
OPTIMIZERS = [
    *ELEMENTWISE,
    partial(optim.Adam, fused=True, weight_decay=0.1),
    partial(optim.AdamW, amsgrad=True),
    partial(optim.SGD, momentum=0.9, nesterov=True),
    partial(optim.RMSprop, momentum=0.5, centered=True),
]


def net() -> nn.Module:
    torch.manual_seed(0)
    return pquant.compress(nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), DST(threshold_init=0.01), HGQ, torch.randn(2, 5))


def step(model: nn.Module) -> None:
    torch.manual_seed(1)
    x, y = torch.randn(16, 5), torch.randint(0, 3, (16,))
    (nn.functional.cross_entropy(model(x), y) + pquant.penalty(model)).backward()


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda one: getattr(one, "__name__", None) or f"{one.func.__name__} {one.keywords}")
def test_updates_are_those_of_each_parameter_alone(optimizer) -> None:
    joined, alone = net(), net()
    updates = Updates(optimizer(pquant.parameter_groups(joined), lr=0.01), joined)
    other = optimizer(pquant.parameter_groups(alone), lr=0.01)
    for stage in (pquant.Stage.PRETRAIN, pquant.Stage.TRAIN):
        for model in (joined, alone):
            pquant.set_stage(model.train(), stage, pquant.Horizon(2, 2))
        for _ in range(3):
            updates.zero_grad()
            other.zero_grad()
            step(joined)
            step(alone)
            updates.step()
            other.step()
    fused = other.defaults.get("fused")
    same = partial(torch.testing.assert_close, rtol=1e-6 if fused else 0, atol=1e-12 if fused else 0)
    for (name, mine), theirs in zip(joined.named_parameters(), alone.parameters(), strict=True):
        same(mine, theirs, msg=name)
        memory = [value for value in other.state[theirs].values() if isinstance(value, torch.Tensor) and value.shape == theirs.shape and value.ndim]
        for kept, expected in zip([value for value in updates.memory(mine) if value.ndim], memory, strict=True):
            same(kept, expected, msg=name)


def test_an_optimizer_has_few_tensors_and_the_large_ones_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(SMALL // 8 + 1, 8), nn.Linear(4, 4))
    optimizer = optim.SGD([{"params": model[:2].parameters()}, {"params": model[2].parameters()}], lr=0.1)
    before = copy.deepcopy(model.state_dict())
    updates = Updates(optimizer, model)
    assert [[parameter.numel() for parameter in group["params"]] for group in optimizer.param_groups] == [[20 + 8, SMALL + 8], [20]]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [*updates.parameters] == [*model.parameters()]


def test_groups_of_equal_options_become_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = optim.Adam([{"params": layer.parameters()} for layer in model], lr=0.1)
    Updates(optimizer, model)
    ((whole,),) = [group["params"] for group in optimizer.param_groups]
    assert whole.shape == (40,) and torch.equal(whole[:16].view(4, 4), model[0].weight)


def test_groups_of_other_options_stay_apart() -> None:
    model = net()
    optimizer = optim.AdamW(pquant.parameter_groups(model), lr=0.1, weight_decay=0.5)
    Updates(optimizer, model)
    groups = sorted((group["weight_decay"], group["lr"], len(group["params"])) for group in optimizer.param_groups)
    assert groups == [(0.0, 0.02, 1), (0.0, 0.1, 2), (0.5, 0.1, 1)]


def test_a_missing_gradient_counts_as_zero_and_without_any_nothing_moves() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    updates = Updates(optim.SGD(model.parameters(), lr=1.0, momentum=0.9), model)
    before = copy.deepcopy(model.state_dict())
    updates.step()
    assert not updates.optimizer.state and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model[1](torch.ones(1, 2)).sum().backward()
    updates.step()
    assert torch.equal(model[0].weight, before["0.weight"]) and torch.equal(model[1].weight, before["1.weight"] - 1)


def test_other_optimizers_keep_their_parameters() -> None:
    model = nn.Linear(2, 2)
    optimizer = optim.LBFGS(model.parameters())
    updates = Updates(optimizer, model)
    assert optimizer.param_groups[0]["params"] == [*model.parameters()] and updates.memory(model.weight) == []


def test_a_step_is_noticed_by_what_was_saved_of_a_parameter() -> None:
    model = nn.Linear(2, 2)
    updates = Updates(optim.SGD(model.parameters(), lr=1.0), model)
    loss = (model.weight**2).sum()
    model.weight.grad = torch.ones(2, 2)
    updates.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()

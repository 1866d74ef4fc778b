"""What is derived from modules is made anew when one of them changes."""

import copy

import pytest
import torch
from torch import nn

import pquant
from pquant.layers import PQDense
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.watched import changes

BITS = Quantization(default_data_integer_bits=3, default_data_fractional_bits=4, default_weight_keep_negatives=True, default_weight_fractional_bits=5)


def model() -> nn.Module:
    torch.manual_seed(0)
    net = pquant.compress(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), DST(threshold_init=0.1), BITS)
    pquant.set_stage(net.train(), pquant.Stage.TRAIN, pquant.Horizon(2, 2))
    return net


def alone(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    for layer in net:
        x = layer(x)
    return x


def shift(net: nn.Module) -> None:
    net[0].weight = nn.Parameter(net[0].weight.detach() + 0.25)


def tie(net: nn.Module) -> None:
    net[0]._parameters["weight"] = nn.Parameter(net[0].weight.detach().neg())


def replace_quantizer(net: nn.Module) -> None:
    net[0].weight_quantizer.fix(1, 2, 1)


def parametrize(net: nn.Module) -> None:
    torch.nn.utils.parametrize.register_parametrization(net[0], "weight", nn.Tanh(), unsafe=True)


def cast(net: nn.Module) -> None:
    for parameter in net.parameters():
        parameter.data = parameter.data.double()


@pytest.mark.parametrize("change", [cast, shift, tie, replace_quantizer, parametrize, nn.Module.double, nn.Module.eval, copy.deepcopy])
def test_a_change_takes_effect_at_the_next_forward(change) -> None:
    net, x = model(), torch.rand(5, 4)
    net(x)
    net = change(net) or net
    x = x.to(net[2].weight)
    with torch.no_grad():
        net[2].weight.mul_(0.5)
    assert torch.equal(net(x), alone(net, x))


def test_a_swapped_weight_is_the_one_computed_with() -> None:
    net, x = model(), torch.rand(5, 4)
    before = net(x)
    weight = torch.zeros(8, 4)
    assert not torch.equal(torch.func.functional_call(net, {"0.weight": weight}, (x,)), before)
    assert torch.equal(net(x), before)


def test_each_mode_has_a_plan_that_stays() -> None:
    net, x = model(), torch.rand(5, 4)
    together = next(hook.__self__ for hook in net._forward_pre_hooks.values())
    trained = net(x)
    evaluated = net.eval()(x)
    plans, before = dict(together.plans), changes()
    assert torch.equal(net.train()(x), trained) and torch.equal(net.eval()(x), evaluated)
    assert changes() == before and together.plans == plans and len(plans) == 2
    net[0].eval(), net[2].train()
    assert torch.equal(net(x), alone(net, x)) and len(together.plans) == 3
    replace_quantizer(net)
    assert torch.equal(net(x), alone(net, x)) and len(together.plans) == 1


def test_a_step_without_changes_counts_none() -> None:
    net, x = model(), torch.rand(5, 4)
    net(x).sum().backward()
    before = changes()
    net(x).sum().backward()
    pquant.on_batch_end(net)
    assert changes() == before
    PQDense(2, 2)
    assert changes() > before

"""Activations that are a function of one value: q_out(f(q_in(x))), with the function and the parameters of the torch layer."""

import math

import pytest
import torch
from torch import nn

import pquant
from pquant.layers import PQActivation
from pquant.layers.activation import KINDS, TABLES
from pquant.pruning import DST
from pquant.quantization import Quantization, fixed_point

BITS = {"default_data_keep_negatives": True, "default_data_integer_bits": 3, "default_data_fractional_bits": 5}
WEIGHTS = {"default_weight_keep_negatives": True, "default_weight_fractional_bits": 5}
FIXED = Quantization(**BITS)
X = torch.linspace(-9, 9, 601)
BY_HAND = {
    "sigmoid": lambda x: 1 / (1 + math.exp(-x)),
    "hardsigmoid": lambda x: min(max(x / 6 + 0.5, 0), 1),
    "logsigmoid": lambda x: -math.log1p(math.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "leaky_relu": lambda x: x if x > 0 else 0.01 * x,
    "prelu": lambda x: x if x > 0 else 0.25 * x,
    "relu6": lambda x: min(max(x, 0), 6),
    "hardtanh": lambda x: min(max(x, -1), 1),
    "elu": lambda x: x if x > 0 else math.expm1(x),
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "celu": lambda x: x if x > 0 else math.expm1(x),
    "softplus": lambda x: math.log1p(math.exp(x)),
    "softsign": lambda x: x / (1 + abs(x)),
    "tanhshrink": lambda x: x - math.tanh(x),
    "softshrink": lambda x: math.copysign(max(abs(x) - 0.5, 0), x),
    "hardshrink": lambda x: x if abs(x) > 0.5 else 0.0,
}


@pytest.mark.parametrize("kind", TABLES)
def test_values_are_those_of_the_function_between_two_quantizers(kind: str) -> None:
    layer = PQActivation(kind, FIXED)
    inside = fixed_point(X, 1, 3, 5)
    exact = torch.tensor([BY_HAND[kind](value) for value in inside.double().tolist()], dtype=torch.float64)
    steps = layer(X).double() * 2**5
    assert torch.equal(steps, steps.round())
    assert (layer(X).double() - exact.clamp(-8, 8 - 2**-5)).abs().max() <= 2**-6 + 1e-5


@pytest.mark.parametrize("kind", TABLES)
def test_without_quantization_it_is_the_torch_layer(kind: str) -> None:
    layer = TABLES[kind]()
    model = pquant.compress(nn.Sequential(nn.Linear(4, 4), layer), None, None, torch.randn(2, 4))
    assert isinstance(model[1], PQActivation) and torch.equal(model[1](X), layer(X))
    assert pquant.layers.unconverted(model) == []


def test_the_constants_and_parameters_of_the_layer_are_kept() -> None:
    layers = [nn.LeakyReLU(0.2), nn.Hardtanh(-2, 3), nn.ELU(0.7), nn.Softplus(2, 5), nn.GELU("tanh"), nn.Softshrink(0.1), nn.PReLU(4, init=0.1)]
    for layer in layers:
        model = pquant.compress(nn.Sequential(layer), None, None, torch.randn(3, 4))
        x = torch.randn(16, 4) * 3
        assert torch.equal(model[0](x), layer(x))


def test_a_trained_slope_is_trained_and_fixed_at_the_end() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 4)
    section = Quantization(**BITS, **WEIGHTS, use_hgq=True, hgq_beta=1e-6)
    model = pquant.compress(nn.Sequential(nn.Linear(4, 8), nn.PReLU(8), nn.Linear(8, 2)), DST(), section, x)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    before = model[1].weight.detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    (model(x).square().mean() + pquant.penalty(model)).backward()
    optimizer.step()
    assert not torch.equal(model[1].weight, before)
    final = pquant.finalize(model.eval())
    assert torch.equal(final(x), model(x)) and not any(parameter.requires_grad for parameter in final.parameters())


@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM", "WRAP", "WRAP_SM"])
@pytest.mark.parametrize("round_mode", ["TRN", "TRN_ZERO", "RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"])
def test_every_mode_quantizes_both_sides(round_mode: str, overflow_mode: str) -> None:
    layer = PQActivation("silu", Quantization(**BITS, round_mode=round_mode, overflow_mode_data=overflow_mode))
    inside = fixed_point(X, 1, 3, 5, round_mode, overflow_mode)
    assert torch.equal(layer(X), fixed_point(torch.nn.functional.silu(inside), 1, 3, 5, round_mode, overflow_mode))


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="unknown PQActivation.kind 'swilu': did you mean 'silu'"):
        PQActivation("swilu")
    assert set(BY_HAND) | {"relu", "tanh"} == set(KINDS)

"""A model whose quantizers are deferred is the float model, and is itself again after."""

import copy

import pytest
import torch
from torch import nn

import pquant
from pquant.fitcompress.deferred_quantization import defer, release, released
from pquant.quantization import Quantization

BITS = {"default_weight_keep_negatives": True, "default_weight_fractional_bits": 2, "default_data_integer_bits": 2, "default_data_fractional_bits": 1}
PLAIN = Quantization(**BITS, default_data_keep_negatives=True, use_relu_multiplier=False)
SHIFTED = Quantization(**BITS, default_data_keep_negatives=True, quantize_output=False)
RANGED = Quantization(**{**BITS, "default_data_integer_bits": "auto", "default_weight_integer_bits": "auto"}, use_relu_multiplier=False)


def float_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)
    )


@pytest.mark.parametrize("quantization", [PLAIN, SHIFTED, RANGED], ids=["plain", "shifted", "ranged"])
def test_deferred_is_float_and_release_brings_everything_back(quantization: Quantization) -> None:
    net, x = float_net().eval(), torch.randn(4, 1, 6, 6)
    model = pquant.compress(net, None, quantization, x).eval()
    quantized, before = model(x), copy.deepcopy(model.state_dict())
    sources = [getattr(module, "source", ()) for module in model.modules()]
    ebops = pquant.ebops(model)
    defer(model)
    torch.testing.assert_close(model(x), net(x), rtol=1e-6, atol=1e-6)
    assert not torch.equal(quantized, net(x)) and pquant.ebops(model) > ebops
    defer(model)
    release(model)
    assert model.state_dict().keys() == before.keys()
    assert [getattr(module, "source", ()) for module in model.modules()] == sources
    assert torch.equal(model(x), quantized) and pquant.ebops(model) == ebops
    release(model)
    assert torch.equal(model(x), quantized)


def test_training_while_deferred_is_the_float_networks_training() -> None:
    net, x = float_net(), torch.randn(4, 1, 6, 6)
    model = pquant.compress(net, None, PLAIN, x)
    defer(model)
    for one in (net, model):
        one.train()
        one(x).square().sum().backward()
    for ours, theirs in zip(model.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def test_layers_that_share_a_quantizer_share_it_after() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    model = pquant.compress(net, None, PLAIN)
    defer(model)
    assert model[0].weight_quantizer is model[1].weight_quantizer
    release(model)
    assert model[0].weight_quantizer is model[1].weight_quantizer and not model[0].weight_quantizer.is_float


def test_released_gives_the_quantizer_behind() -> None:
    model = pquant.compress(nn.Linear(2, 2), None, PLAIN)
    own = model.weight_quantizer
    defer(model)
    assert model.weight_quantizer.is_float and released(model.weight_quantizer) is own and released(own) is own

"""EBOPs against a count of every single multiplication in plain Python integers."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.errors import ConfigError
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.quantization.ebops import significant_bits

from ..formats import SIX_BITS

BITS = SIX_BITS | {"quantize_output": False}
FIXED = Quantization(**BITS)


def set_bits(value: float) -> int:
    """Return the number of bits from the highest to the lowest set one."""
    n = abs(value.as_integer_ratio()[0])
    while n and n % 2 == 0:
        n //= 2
    return n.bit_length()


def test_set_bits() -> None:
    values = [0.0, 1.0, -1.0, 0.75, 5 / 32, 96.0, -(2.0**-126), 2.0**-149, 1 + 2.0**-23, 2.0**24 - 1, 3.4028234663852886e38]
    assert significant_bits(torch.tensor(values)).tolist() == [set_bits(value) for value in values]
    some = torch.randn(1000)
    assert significant_bits(some).tolist() == [set_bits(value) for value in some.tolist()]


def counted(layer: nn.Module, shape: tuple[int, ...], data: Tensor) -> int:
    """Return the EBOPs of a dense or convolution layer for one input of ``shape`` and bits ``data``, one scalar multiplication after another."""
    weight, bias = layer.finalized_parameters()
    data = data.expand(shape)
    if isinstance(layer, nn.Linear):
        rows = itertools.product(*map(range, shape[:-1]))
        dots = [(o, [(weight[o, j], data[*row, j]) for j in range(shape[-1])]) for row in rows for o in range(len(weight))]
    else:
        dots = list(convolved(layer, weight, data))
    total = sum(set_bits(w.item()) * int(x) for _, products in dots for w, x in products)
    return total + (0 if bias is None else sum(set_bits(bias[o].item()) for o, _ in dots))


def convolved(layer: nn.Module, weight: Tensor, data: Tensor) -> Any:
    size, inputs = data.shape[1:], weight.shape[1]
    spans = [dilation * (kernel - 1) + 1 for dilation, kernel in zip(layer.dilation, layer.kernel_size, strict=True)]
    ranges = [range(0, n + 2 * p - span + 1, s) for n, p, span, s in zip(size, layer.padding, spans, layer.stride, strict=True)]
    for o, corner in itertools.product(range(len(weight)), itertools.product(*ranges)):
        first = o // (len(weight) // layer.groups) * inputs
        products = []
        for c, tap in itertools.product(range(inputs), itertools.product(*map(range, layer.kernel_size))):
            at = [a + t * d - p for a, t, d, p in zip(corner, tap, layer.dilation, layer.padding, strict=True)]
            if all(0 <= position < n for position, n in zip(at, size, strict=True)):
                products.append((weight[o, c, *tap], data[first + c, *at]))
        yield o, products


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Linear(5, 4), (5,)),
    "dense without bias": (nn.Linear(5, 4, bias=False), (5,)),
    "dense on a sequence": (nn.Linear(5, 4), (7, 5)),
    "dense on a map": (nn.Linear(3, 2), (4, 2, 3)),
    "conv1d": (nn.Conv1d(3, 4, 3), (3, 9)),
    "conv1d strided, padded, dilated": (nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 9)),
    "conv2d": (nn.Conv2d(3, 4, 3), (3, 5, 5)),
    "conv2d padded": (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 6)),
    "conv2d uneven": (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 6, 5)),
    "conv2d in groups": (nn.Conv2d(4, 6, 3, groups=2), (4, 4, 4)),
    "conv2d by channel": (nn.Conv2d(4, 8, 2, groups=4), (4, 4, 4)),
    "conv2d pointwise": (nn.Conv2d(4, 3, 1), (4, 3, 3)),
    "conv3d": (nn.Conv3d(2, 2, 2, padding=1, groups=2), (2, 3, 4, 3)),
}


@pytest.mark.parametrize("bits", ["per_tensor", "per_channel", "per_weight"])
@pytest.mark.parametrize("name", LAYERS)
def test_every_multiplication_is_counted(name: str, bits: str) -> None:
    layer, shape = LAYERS[name]
    features = shape[-1] if isinstance(layer, nn.Linear) else shape[0]
    spread = torch.exp2(2.0 * torch.arange(features) - 2).view(-1, *(1 for _ in shape[1:] if not isinstance(layer, nn.Linear)))
    auto = Quantization(**(BITS | {"default_data_integer_bits": "auto"}), data_granularity=bits)
    model = pquant.compress(layer, DST(threshold_init=0.05), auto, torch.randn(64, *shape) * spread)
    for stage in (pquant.Stage.PRETRAIN, pquant.Stage.TRAIN, pquant.Stage.FINETUNE):
        pquant.set_stage(model, stage)
        expected = counted(model, shape, model.input_quantizer.width())
        assert pquant.ebops(model) == expected
        assert pquant.ebops(pquant.finalize(model)) == expected
    assert bits == "per_tensor" or len(model.input_quantizer.width().unique()) > 1


def test_the_reference_convolution() -> None:
    layer = nn.Conv2d(3, 4, 3)
    nn.init.constant_(layer.weight, 255 / 256)
    nn.init.zeros_(layer.bias)
    eight = Quantization(default_weight_fractional_bits=8, default_data_fractional_bits=8)
    assert pquant.ebops(pquant.compress(layer, None, eight, torch.rand(1, 3, 8, 8))) == 36 * 3 * 4 * 9 * 64 == 248832


def test_pruned_and_zero_weights_cost_nothing() -> None:
    layer = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.5, 0.001, 0.3, 0.75], [0.0, 0.01, 0.02, -0.25], [0.1, 0.2, 0.3, 0.4]]))
    model = pquant.compress(layer, DST(threshold_init=0.27), FIXED)
    pquant.set_stage(model, pquant.Stage.TRAIN)
    assert model.finalized_parameters()[0].tolist() == [[0.5, 0, 0.3125, 0.75], [0, 0, 0, 0], [0, 0, 0.3125, 0.40625]]
    assert pquant.ebops(model) == 6 * (1 + 3 + 2 + 3 + 4)
    nothing = pquant.compress(layer, DST(threshold_init=9.0), FIXED)
    pquant.set_stage(nothing, pquant.Stage.TRAIN)
    assert pquant.ebops(nothing) == 0


@pytest.mark.parametrize(("norm", "shape"), [(nn.BatchNorm1d(3), (3,)), (nn.BatchNorm1d(3), (3, 5)), (nn.BatchNorm2d(3), (3, 2, 4))])
def test_a_batch_norm_multiplies_and_adds_at_every_position(norm: nn.Module, shape: tuple[int, ...]) -> None:
    norm.running_var.copy_(torch.tensor([0.3, 1.7, 5.0]))
    norm.running_mean.copy_(torch.tensor([0.1, -1.0, 0.4]))
    model = pquant.compress(norm.eval(), None, FIXED, torch.randn(4, *shape))
    scale, shift = (values.tolist() for values in model.scale_and_shift())
    expected = math.prod(shape[1:]) * sum(set_bits(a) * 6 + set_bits(b) for a, b in zip(scale, shift, strict=True))
    assert pquant.ebops(model) == expected
    assert pquant.ebops(pquant.finalize(model)) == expected
    assert all(set_bits(value) <= 5 for value in scale + shift)


def test_float_values_count_as_32_bits() -> None:
    layer = nn.Linear(4, 3)
    assert pquant.ebops(pquant.compress(layer)) == 12 * 32 * 32 + 3 * 32
    inputs_only = Quantization(**BITS, layer_specific={"*": {"weight": {"enable": False}, "bias": {"enable": False}}})
    assert pquant.ebops(pquant.compress(layer, None, inputs_only)) == 12 * 32 * 6 + 3 * 32


def test_the_input_of_a_layer_has_the_bits_of_what_made_it() -> None:
    rules = {"0": {"output": {"enable": True, "k": True, "i": 1, "f": 1}}, "3": {"input": {"i": 0, "f": 2}}}
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Flatten(), nn.Linear(3, 3, bias=False), nn.Linear(3, 2, bias=False))
    model = pquant.compress(net, None, Quantization(**BITS, layer_specific=rules), torch.randn(2, 4))
    weights = [sum(set_bits(w) for w in layer.finalized_parameters()[0].flatten().tolist()) for layer in (model[0], model[2], model[3])]
    assert pquant.ebops(model) == weights[0] * 6 + weights[1] * 3 + weights[2] * 3


def test_a_layer_called_twice_costs_twice_and_others_are_free() -> None:
    layer = nn.Linear(4, 4)
    once, twice = nn.Sequential(layer, nn.ReLU()), nn.Sequential(layer, nn.Tanh(), nn.Unflatten(1, (2, 2)), nn.AvgPool1d(1), nn.Flatten(), layer)
    counts = [pquant.ebops(pquant.compress(net, None, FIXED, torch.randn(2, 4))) for net in (once, twice)]
    assert counts[1] == 2 * counts[0] > 0


def test_layers_of_unknown_size_are_named() -> None:
    model = nn.Sequential(nn.Conv1d(2, 3, 2), nn.ReLU())
    with pytest.raises(ConfigError, match="the EBOPs of layer '0' depend on the size of its input: give compress an example_input"):
        pquant.ebops(pquant.compress(model, None, FIXED))
    assert [row["ebops"] for row in pquant.layer_table(pquant.compress(model, None, FIXED))] == [None, None]
    known = pquant.compress(model, None, FIXED, torch.randn(2, 2, 7))
    assert sum(row["ebops"] for row in pquant.layer_table(known)) == pquant.ebops(known) == pquant.model_metrics(known)["ebops"]


def test_counting_changes_neither_modes_nor_gradients() -> None:
    model = pquant.compress(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), DST(), FIXED, torch.randn(2, 4))
    model[0].eval()
    modes, state = (
        [module.training for module in model.modules()],
        {name: value.clone() for name, value in model.state_dict().items() if "extra" not in name},
    )
    pquant.ebops(model)
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(state[name], model.state_dict()[name]) for name in state)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("granularity", ["per_tensor", "per_weight"])
def test_training_pays_for_widths_and_not_for_pruned_weights(name: str, granularity: str) -> None:
    layer, shape = LAYERS[name]
    trained = Quantization(**BITS, use_hgq=True, hgq_beta=1.0, granularity=granularity)
    model = pquant.compress(layer, DST(threshold_init=0.1, alpha=0.0), trained, torch.randn(2, *shape))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    widths = Quantization(**BITS, layer_specific={"*": {"weight": {"i": 0, "f": 5}}})
    alike = pquant.compress(layer, None, widths, torch.randn(2, *shape))
    with torch.no_grad():  # a weight with all of 6 bits set where one survives, the sign counted as training does
        alike.weight.copy_(torch.where(model.pruner.hard_mask(model.weight), 63 / 64, 0.0))
        alike.weight_quantizer = alike.weight_quantizer.of([torch.tensor(float(n)) for n in (0, 0, 6)], "RND", "SAT")
        if alike.bias is not None:
            alike.bias.fill_(63 / 64)
            alike.bias_quantizer = alike.weight_quantizer
    penalty = pquant.penalty(model)
    assert float(penalty.detach()) == counted(alike, shape, torch.tensor(6))
    penalty.backward()
    with torch.no_grad():
        alike.weight.zero_()
    of_weights = float(penalty.detach()) - counted(alike, shape, torch.tensor(6))
    bits = model.weight_quantizer
    assert float((bits.f.grad * bits.bits().detach()).sum()) == pytest.approx(of_weights), "linear in the bits of weights"


class Waves(nn.Module):
    """A product of quantized and of float values."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x) @ torch.sin(x)


@pytest.mark.parametrize("use_hgq", [False, True])
def test_products_with_float_data_count_in_doubles_too(use_hgq: bool) -> None:
    section = Quantization(**SIX_BITS, quantize_input=False, use_hgq=use_hgq, hgq_beta=1e-3)
    model = pquant.compress(Waves(), None, section, torch.randn(2, 4, 4))
    found = pquant.ebops(model), float(pquant.penalty(model).detach())
    assert found[0] > 0 and found == (pquant.ebops(model.double()), pytest.approx(float(pquant.penalty(model).detach())))


def test_a_softmax_with_a_float_table_counts_on_the_device_of_its_bits() -> None:
    rules = {"1": {"exponential": {"enable": False}}}
    section = Quantization(**SIX_BITS, use_hgq=True, hgq_beta=1.0, layer_specific=rules)
    model = pquant.compress(nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)), None, section, torch.randn(2, 4))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    assert pquant.penalty(model) > 0
    assert pquant.penalty(model.to("meta")).device.type == "meta"


@pytest.mark.parametrize("last", [nn.Softmax(-1), nn.LayerNorm(4), nn.RMSNorm(4, elementwise_affine=False), nn.BatchNorm1d(4)])
def test_layers_whose_products_depend_on_the_example_need_one(last: nn.Module) -> None:
    model = pquant.compress(nn.Sequential(nn.Linear(4, 4), last), None, FIXED)
    with pytest.raises(ConfigError, match="EBOPs of layer '1' depend on the size of its input: give compress an example_input"):
        pquant.ebops(model)

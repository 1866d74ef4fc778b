"""The price of bits in one pass against the operations counted layer by layer."""

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.layers import CompressedLayer
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.quantization.ebops import operations
from pquant.quantization.hgq import HGQQuantizer, price_of
from pquant.quantization.price import prices

BITS = {
    "default_data_keep_negatives": True,
    "default_data_integer_bits": 2,
    "default_data_fractional_bits": 3,
    "default_weight_keep_negatives": True,
    "default_weight_fractional_bits": 5,
    "use_hgq": True,
}


class Residual(nn.Module):
    """A net with a layer called twice, a shared weight, groups, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.again = nn.Conv2d(4, 4, 1, bias=False)
        self.head, self.tail = nn.Linear(4, 4), nn.Linear(4, 4)
        self.tail.weight = self.head.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.norm(self.first(x)))
        y = y + self.again(self.again(y))
        return self.tail(self.head(y.mean((2, 3))))


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "dense": (nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3, bias=False)), (5,)),
    "dense on a sequence": (nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (7, 5)),
    "conv1d": (nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)), (4, 8)),
    "conv2d": (nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2), nn.ReLU(), nn.Conv2d(4, 8, 2, groups=4)), (3, 5, 5)),
    "data left out": (nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), nn.Flatten(), nn.Linear(3, 2)), (2, 3, 3)),
    "residual": (Residual(), (4, 4, 4)),
}


def counted(model: nn.Module, beta: float, gamma: float) -> Tensor:
    """Return the price as the sum of its definition over layers."""
    total = torch.zeros(())
    for layer in {id(layer): layer for layer in model.modules() if isinstance(layer, CompressedLayer)}.values():
        weight = layer.weight_quantizer.bits() * layer.pruner.hard_mask(layer.weight).expand_as(layer.weight)
        bias = None if layer.bias is None else layer.bias_quantizer.bits().expand_as(layer.bias)
        total = total + beta * operations(layer, weight, bias, layer.operand().bits())
    return total + gamma * sum(module.bits().sum() for module in model.modules() if isinstance(module, HGQQuantizer))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("weights", ["per_tensor", "per_channel", "per_weight"])
@pytest.mark.parametrize("data", ["per_tensor", "per_channel", "per_weight"])
@pytest.mark.parametrize("enable", [True, False])
def test_value_and_gradients_are_those_of_the_count(name: str, weights: str, data: str, enable: bool) -> None:
    net, shape = NETS[name]
    torch.manual_seed(0)
    rules = {} if enable else {"0": {"weight": {"enable": False}, "input": {"enable": False}}, "first": {"bias": {"enable": False}}}
    rules = {name: rule for name, rule in rules.items() if name in dict(net.named_modules())}
    section = Quantization(**BITS, hgq_beta=1e-3, hgq_gamma=1e-2, granularity=weights, data_granularity=data, layer_specific=rules)
    model = pquant.compress(net, DST(threshold_init=0.1, alpha=0.0), section, torch.randn(2, *shape))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    trained = [module for module in model.modules() if isinstance(module, HGQQuantizer)]
    for quantizer in trained:
        quantizer.f.data.add_(torch.randint(-7, 3, quantizer.f.shape))
    bits = [parameter for quantizer in trained for parameter in (quantizer.i, quantizer.f)]
    (price,) = prices(model)
    mine, expected = price(), counted(model, 1e-3, 1e-2)
    torch.testing.assert_close(mine, expected)
    slopes = torch.autograd.grad(mine, bits)
    for one, other in zip(slopes, torch.autograd.grad(expected, bits), strict=True):
        torch.testing.assert_close(one, other)
    if not price.singly:
        assert price.looped
        simple = torch.autograd.grad(price_of(price.trained, price.signs, price._sloped), bits)
        for one, other in zip(slopes, simple, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=0)  # sums in another order


def test_doubles_are_counted_too_and_a_moved_bit_is_seen() -> None:
    model = pquant.compress(NETS["dense"][0], None, Quantization(**BITS, hgq_beta=1e-3, hgq_gamma=1e-2), torch.randn(2, 5))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    (price,) = prices(model)
    before = price().item()
    assert price.looped
    model.double()
    assert price().item() == pytest.approx(before) and not price.looped
    model.float()[0].weight_quantizer.f = nn.Parameter(torch.tensor(1.0))
    assert price().item() < 0.9 * before and price.looped


def test_every_quantization_has_a_price_of_its_own() -> None:
    cheap, dear = (Quantization(**BITS, hgq_gamma=gamma) for gamma in (1e-3, 1e-1))
    layers = [pquant.compress(nn.Linear(3, 2), None, section, torch.randn(2, 3)) for section in (cheap, dear)]
    model = nn.Sequential(*layers)
    for layer in layers:
        pquant.set_stage(layer, pquant.Stage.TRAIN)
    bits = sum(module.bits().sum().item() for module in layers[0].modules() if isinstance(module, HGQQuantizer))
    assert [price().item() for price in prices(model)] == pytest.approx([1e-3 * bits, 1e-1 * bits])
    assert pquant.penalty(model).item() == pytest.approx(0.101 * bits)


def test_bits_cost_nothing_before_the_train_stage() -> None:
    model = pquant.compress(nn.Linear(3, 2), None, Quantization(**BITS, hgq_gamma=1.0, hgq_beta=1.0))
    assert pquant.penalty(model).item() == 0
    pquant.set_stage(model, pquant.Stage.TRAIN)
    assert pquant.penalty(model).item() > 0
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    assert pquant.penalty(model).item() > 0

"""The regularization of trained bits against sums over unfolded data, and what it follows."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.layers import CompressedLayer
from pquant.pruning import DST
from pquant.quantization import Quantization
from pquant.quantization.hgq import HGQQuantizer

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


def width(quantizer: HGQQuantizer) -> Tensor:
    """Return relu(i + f + sign) of rounded bits, each rounding passing its gradient straight through."""
    i, f = (bits + (bits.round() - bits).detach() for bits in (quantizer.i, quantizer.f))
    return torch.relu(i + f + quantizer.keeps_negatives)


def multiplied(layer: CompressedLayer, shape: tuple[int, ...], data: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of data bits times weight bits over the multiplications of one call."""
    x = data.expand(1, *shape)
    if isinstance(layer, nn.Linear):
        return torch.einsum("...j,oj->", x, weight)
    if isinstance(layer, nn.Conv1d):
        x, weight = x.unsqueeze(2), weight.unsqueeze(2)
    settings = [(1, *setting) if len(setting) == 1 else setting for setting in (layer.dilation, layer.stride)]
    padding = (0, *layer.padding) if len(layer.padding) == 1 else layer.padding
    patches = F.unfold(x, weight.shape[2:], settings[0], padding, settings[1])[0]
    return torch.einsum("gip,goi->", patches.unflatten(0, (layer.groups, -1)), weight.flatten(1).unflatten(0, (layer.groups, -1)))


def oracle(model: nn.Module, beta: float, gamma: float) -> Tensor:
    total = torch.zeros(())
    for layer in {id(layer): layer for layer in model.modules() if isinstance(layer, CompressedLayer)}.values():
        trained = [isinstance(quantizer, HGQQuantizer) for quantizer in (layer.weight_quantizer, layer.bias_quantizer, layer.operand())]
        weight, bias, data = (
            width(quantizer) if is_trained else torch.tensor(32.0)
            for quantizer, is_trained in zip((layer.weight_quantizer, layer.bias_quantizer, layer.operand()), trained, strict=True)
        )
        kept = (layer.weight.abs() > layer.pruner.threshold).float()
        for call in layer.calls:
            if any(trained):
                total = total + beta * multiplied(layer, call.input[1:], data, weight.expand_as(layer.weight) * kept)
            if any(trained) and layer.bias is not None:
                total = total + beta * bias.expand_as(layer.bias).sum() * (torch.Size(call.output).numel() // len(layer.weight))
    return total + gamma * sum(width(module).sum() for module in model.modules() if isinstance(module, HGQQuantizer))


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("weights", ["per_tensor", "per_channel", "per_weight"])
@pytest.mark.parametrize("data", ["per_tensor", "per_channel", "per_weight"])
@pytest.mark.parametrize("enable", [True, False])
def test_value_and_gradients_are_those_of_the_oracle(name: str, weights: str, data: str, enable: bool) -> None:
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
    mine, expected = pquant.penalty(model), oracle(model, 1e-3, 1e-2)
    torch.testing.assert_close(mine, expected)
    for one, other in zip(torch.autograd.grad(mine, bits), torch.autograd.grad(expected, bits), strict=True):
        torch.testing.assert_close(one, other)


def test_doubles_are_counted_too_and_a_moved_bit_is_seen() -> None:
    model = pquant.compress(NETS["dense"][0], None, Quantization(**BITS, hgq_beta=1e-3, hgq_gamma=1e-2), torch.randn(2, 5))
    pquant.set_stage(model, pquant.Stage.TRAIN)
    before = pquant.penalty(model).item()
    assert pquant.penalty(model.double()).item() == pytest.approx(before)
    model.float()[0].weight_quantizer.f = nn.Parameter(torch.tensor(1.0))
    assert pquant.penalty(model).item() < 0.9 * before


def test_every_quantization_has_regularization_weights_of_its_own() -> None:
    weak, strong = (Quantization(**BITS, hgq_gamma=gamma) for gamma in (1e-3, 1e-1))
    layers = [pquant.compress(nn.Linear(3, 2), None, section, torch.randn(2, 3)) for section in (weak, strong)]
    model = nn.Sequential(*layers)
    for layer in layers:
        pquant.set_stage(layer, pquant.Stage.TRAIN)
    bits = sum(module.bits().sum().item() for module in layers[0].modules() if isinstance(module, HGQQuantizer))
    assert [pquant.penalty(layer).item() for layer in layers] == pytest.approx([1e-3 * bits, 1e-1 * bits])
    assert pquant.penalty(model).item() == pytest.approx(0.101 * bits)


def test_bits_cost_nothing_before_the_train_stage() -> None:
    model = pquant.compress(nn.Linear(3, 2), None, Quantization(**BITS, hgq_gamma=1.0, hgq_beta=1.0))
    assert pquant.penalty(model).item() == 0
    pquant.set_stage(model, pquant.Stage.TRAIN)
    assert pquant.penalty(model).item() > 0
    pquant.set_stage(model, pquant.Stage.FINETUNE)
    assert pquant.penalty(model).item() > 0

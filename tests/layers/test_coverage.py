"""Which share of a model is quantized: by hand, when switched off, and where parts stay float."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import pquant
from pquant.errors import ConfigError
from pquant.layers.trace import Trace
from pquant.pruning import DST
from pquant.quantization import Quantization

from .test_composites import BITS

FIXED = Quantization(**BITS)


class Half(nn.Module):
    """A dense layer that can be quantized, and one with a forward of its own and a sine that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.left = nn.Linear(6, 4), nn.ReLU(), Shifted(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.left(self.act(self.fc(x))))


class Shifted(nn.Linear):
    """A dense layer that adds 1."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def test_shares_by_hand() -> None:
    x = torch.randn(8, 6)
    model = pquant.compress(Half(), None, FIXED, x)
    share = pquant.coverage(model)
    quantized, left = 6 * 4 + 4, 4 * 2 + 2
    assert share["parameters"] == quantized / (quantized + left)
    assert share["activations"] == (4 + 4) / (4 + 4 + 2 + 2)
    assert share["multiplications"] == 6 * 4 / (6 * 4 + 4 * 2)
    assert pquant.coverage(pquant.finalize(model)) == share
    assert pquant.unconverted(model, x) == ["sin (model)", "Shifted (left)"]


@pytest.mark.parametrize("use_hgq", [False, True])
def test_switched_off_nothing_is_quantized_and_what_is_follows_the_settings(use_hgq: bool) -> None:
    x = torch.randn(8, 6)
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    section = BITS | {"use_hgq": use_hgq}
    full = pquant.compress(net, DST(), Quantization(**section), x)
    assert pquant.coverage(full) == {"parameters": 1, "multiplications": 1, "activations": 1} == pquant.coverage(pquant.finalize(full))
    off = pquant.compress(net, DST(), Quantization(**section, enable_quantization=False), x)
    assert pquant.coverage(off) == {"parameters": 0, "multiplications": 0, "activations": 0}
    half = pquant.compress(net, None, Quantization(**section, layer_specific={"0": {"enable_quantization": False}}), x)
    assert pquant.coverage(half)["multiplications"] == 4 * 2 / (6 * 4 + 4 * 2)
    assert pquant.coverage(half)["parameters"] == (8 + 4 * 2 + 2) / (28 + 8 + 10)


def test_parameters_of_other_modules_count_where_they_are_used_as_values() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.position, self.fc = nn.Embedding(9, 4), nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.tokens(x) + self.position)

    x = torch.randint(0, 9, (5, 3))
    model = pquant.compress(Embedded(), None, FIXED, x)
    assert pquant.coverage(model)["parameters"] == 1 and pquant.unconverted(model, x) == []
    other = pquant.compress(Embedded(), None, Quantization(**BITS, layer_specific={"position*": {"enable_quantization": False}}), x)
    assert pquant.coverage(other)["parameters"] == (36 + 10) / (36 + 12 + 10)


Q = torch.randn(2, 3, 4, 5)
CALLS = {
    "linear": (F.linear, (torch.randn(2, 3, 5), torch.randn(4, 5), torch.randn(4))),
    "matmul": (torch.matmul, (Q, torch.randn(2, 3, 5, 6))),
    "bmm": (torch.bmm, (Q[0], Q[0].transpose(1, 2).contiguous())),
    "addmm": (torch.addmm, (torch.randn(3, 5), torch.randn(3, 4), torch.randn(4, 5))),
    "einsum": (lambda a, b: torch.einsum("bhij,bhkj->bhik", a, b), (Q, Q)),
    "einsum with dots": (lambda a, b: torch.einsum("...ij,...jk->...ik", a, b), (Q, Q.transpose(2, 3))),
    "conv2d": (lambda x, w: F.conv2d(x, w, groups=2, stride=2, padding=1), (torch.randn(2, 4, 7, 7), torch.randn(6, 2, 3, 3))),
    "conv_transpose1d": (lambda x, w: F.conv_transpose1d(x, w, stride=2, groups=2), (torch.randn(2, 4, 7), torch.randn(4, 3, 3))),
    "attention": (F.scaled_dot_product_attention, (Q, torch.randn(2, 3, 7, 5), torch.randn(2, 3, 7, 5))),
}


@pytest.mark.parametrize("name", CALLS)
def test_multiplications_are_counted_as_torch_counts_them(name: str) -> None:
    function, args = CALLS[name]

    class Only(nn.Module):
        def forward(self, *args: Tensor) -> Tensor:
            return function(*args)

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # torch 2.6 counts no fused attention of a CPU
        function(*args)
    cost = Trace(Only(), args).cost
    assert sum(part.multiplications for part in cost.values()) == counter.get_total_flops() // 2 > 0


def test_without_an_example_it_is_not_known() -> None:
    with pytest.raises(ConfigError, match="coverage depends on what the model computes: give compress an example_input"):
        pquant.coverage(pquant.compress(nn.Linear(3, 2), None, FIXED))
    with pytest.raises(ConfigError, match="give compress an example_input"):
        pquant.coverage(nn.Linear(3, 2))


def test_the_table_shows_it(capsys: pytest.CaptureFixture[str]) -> None:
    x = torch.randn(8, 6)
    pquant.summarize(pquant.compress(nn.Sequential(nn.Linear(6, 4)), None, FIXED, x), x)
    assert "quantized: 100.0 % of the parameters, 100.0 % of the multiplications, 100.0 % of the activations" in capsys.readouterr().out

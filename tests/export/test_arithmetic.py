"""Every layer and function of data against the model in float, and alkaid's logic against the integers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.errors import ConfigError
from pquant.export.check import check_arithmetic, checked
from pquant.export.integers import verify
from pquant.export.replay import input_format
from pquant.export.vectors import test_vectors as make_vectors
from pquant.layers.activation import KINDS
from pquant.layers.merge import MERGES, Merge
from pquant.models import JEDILinear

from .nets import compressed_net, net, splits

COARSE: dict[str, Any] = {
    "default_data_integer_bits": 1,
    "default_data_fractional_bits": 2,
    "default_weight_fractional_bits": 2,
    "quantize_output": True,
}
HGQ: dict[str, Any] = {"use_hgq": True, "granularity": "per_weight", "data_granularity": "per_weight"}


class Between(nn.Module):
    """A dense layer, something, and a dense layer over the last axis."""

    def __init__(self, function: Callable[..., Tensor] | nn.Module, features: int = 4, after: int = 4) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Linear(3, features), function, nn.Linear(after, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.first(x)))


class Pair(nn.Module):
    """Two dense layers, whose results a layer joins, one of them turned where ``turn``."""

    def __init__(self, merge: nn.Module, turn: bool = False, after: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.merge, self.turn, self.last = nn.Linear(3, 4), nn.Linear(3, 4), merge, turn, nn.Linear(after, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.last(self.merge(a, b.transpose(1, 2) if self.turn else b))


class Twice(nn.Module):
    """A layer that is called twice, and the product of both results, which alkaid finds to be the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.merge, self.last = nn.Linear(3, 4), Merge("mul"), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.merge(self.first(x), self.first(x)))


class Learned(nn.Module):
    """A class token, a position embedding and a factor for each feature."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position, self.gamma = (nn.Parameter(torch.randn(shape)) for shape in ((1, 1, 3), (1, 4, 3), (3,)))
        self.first, self.dense = nn.Linear(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.position
        return self.dense(x * self.gamma)[:, 0]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn, self.dense = kind(3, 2, batch_first=True), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.rnn(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.dense = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)
        self.first = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.dense(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Windows(nn.Module):
    """Attention within windows, as vision transformers have it: the windows are joined with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.softmax, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Softmax(-1), nn.Linear(4, 2)
        self.scores, self.context = Merge("matmul"), Merge("matmul")
        self.register_buffer("bias", torch.tensor([[[0.5, -1.0], [0.25, 0.0]]]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).reshape(-1, 2, 4)
        weights = self.softmax(self.scores(x, x.transpose(1, 2)) + self.bias)
        y = self.norm(self.context(weights, x) + x)
        return self.last(y.reshape(-1, 2, 2, 4).flatten(1, 2).mean(1))


IMAGE, SEQUENCE, VECTOR = (2, 4, 4), (3, 3), (3,)


def image(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 2, 1), *layers)


NETS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "max pool": (image(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 2)), IMAGE),
    "max pool, padded": (image(nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1), nn.Flatten(), nn.Linear(8, 2)), IMAGE),
    "max pool, dilated": (image(nn.MaxPool2d(2, stride=1, dilation=2, ceil_mode=True)), IMAGE),
    "max pool of uneven size": (nn.Sequential(nn.Conv1d(3, 2, 1), nn.MaxPool1d(2, ceil_mode=True)), SEQUENCE),
    "global max pool": (image(nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(2, 2)), IMAGE),
    "functional pools": (Between(lambda x: F.max_pool1d(F.relu(x), 2), after=2), SEQUENCE),
    "uneven averages": (nn.Sequential(nn.Conv1d(3, 2, 1), nn.AvgPool1d(2, ceil_mode=True)), SEQUENCE),
    "padded averages": (image(nn.AvgPool2d(3, 2, 1, ceil_mode=True)), IMAGE),
    "averages without padding": (image(nn.AvgPool2d(3, 2, 1, count_include_pad=False)), IMAGE),
    "divisor": (image(nn.AvgPool2d(2, divisor_override=3)), IMAGE),
    "windows": (Windows(), (4, 3)),
    "what nothing needs": (Between(lambda x: (x.exp(), x)[1]), VECTOR),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1, groups=2)), IMAGE),
    "transposed, dilated": (nn.Sequential(nn.ConvTranspose1d(3, 2, 2, stride=3, dilation=2, padding=3)), SEQUENCE),
    "sum over particles": (Between(lambda x: x.sum(1)), SEQUENCE),
    "mean over particles": (Between(lambda x: x.mean(1)), SEQUENCE),
    "mean of four": (Between(lambda x: x.mean((1, 2), keepdim=True).expand(-1, -1, 4), features=4), (2, 3)),
    "max over particles": (Between(lambda x: x.amax(1)), SEQUENCE),
    "max and min": (Between(lambda x: x.max(1)[0] + x.min(dim=1).values), SEQUENCE),
    "two values": (Between(lambda x: torch.maximum(x, -x) - torch.minimum(x, x.roll(1, 1))), VECTOR),
    "relu": (Between(lambda x: torch.relu(x) - F.relu(-x)), VECTOR),
    "clamp": (Between(lambda x: x.clamp(-0.5, max=0.75) + x.clamp_max(0.25) - torch.clamp(x, min=0)), VECTOR),
    "numbers": (Between(lambda x: 1 - (x + 0.5)), VECTOR),
    "power of two": (Between(lambda x: x * 0.25), VECTOR),
    "factor": (Between(lambda x: x * 0.3), VECTOR),
    "negative factor": (Between(lambda x: x * -2), VECTOR),
    "nearest": (image(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(2, 1, 3)), IMAGE),
    "pixel shuffle": (nn.Sequential(nn.Conv2d(2, 4, 1), nn.PixelShuffle(2)), IMAGE),
    "softmax": (Between(nn.Softmax(-1)), VECTOR),
    "softmax over particles": (Between(lambda x: torch.softmax(x, 1)), SEQUENCE),
    "matmul": (Pair(Merge("matmul"), turn=True, after=3), SEQUENCE),
    "einsum": (Pair(Merge("einsum", "bic,bjc->bij"), after=3), SEQUENCE),
    "outer": (Pair(Merge("einsum", "bi,bj->bij"), after=4), VECTOR),
    "square of one layer": (Twice(), VECTOR),
    "norm": (Between(nn.LayerNorm(4)), VECTOR),
    "rms norm": (Between(nn.RMSNorm(4)), VECTOR),
    "group norm": (Between(nn.GroupNorm(2, 4)), VECTOR),
    "constants": (Learned(), SEQUENCE),
    "prelu": (Between(nn.PReLU(4)), VECTOR),
    "attention": (Attention(), SEQUENCE),
    "lstm": (Recurrent(nn.LSTM), SEQUENCE),
    "gru": (Recurrent(nn.GRU), SEQUENCE),
    "rnn": (Recurrent(nn.RNN), SEQUENCE),
    "jedi": (JEDILinear((4, 3), 2, (4,), (4,)), (4, 3)),
    **{kind: (Pair(Merge(kind)), VECTOR) for kind in MERGES if kind not in ("matmul", "einsum")},
}


def compared(model: nn.Module, shape: tuple[int, ...], count: int = 200) -> None:
    graph = checked(model, shape)
    verified = verify(model, graph, make_vectors(splits(shape).test, input_format(graph), count))
    assert verified.count == count and verified.outputs.std() > 0, "an output that is constant shows nothing"
    wires, rtl = pytest.importorskip("pquant.export.rtl.wires"), pytest.importorskip("pquant.export.rtl.exporter")
    rtl.check_emulator(wires.logic(graph), graph, verified)


@pytest.mark.parametrize("options", [{}, HGQ], ids=["fixed", "hgq"])
@pytest.mark.parametrize("kind", NETS)
def test_model_integers_and_logic_are_equal(kind: str, options: dict[str, Any]) -> None:
    model, shape = NETS[kind]
    compressed = compressed_net(model, shape, **COARSE | options)
    check_arithmetic(compressed, shape)
    compared(net(model, shape, **COARSE | options), shape)


@pytest.mark.parametrize("kind", KINDS)
def test_every_activation_is_a_table(kind: str) -> None:
    compared(net(Between(KINDS[kind]()), VECTOR, **COARSE, use_real_tanh=True), VECTOR)


@pytest.mark.parametrize(("rounding", "overflow"), [("TRN", "WRAP"), ("RND_CONV", "SAT_SYM"), ("RND_ZERO", "SAT"), ("TRN_ZERO", "WRAP")])
@pytest.mark.parametrize("kind", ["max pool, padded", "softmax", "matmul", "gru", "mean over particles", "constants"])
def test_modes(kind: str, rounding: str, overflow: str) -> None:
    model, shape = NETS[kind]
    compared(net(model, shape, **COARSE, round_mode=rounding, overflow_mode_data=overflow), shape)


@pytest.mark.parametrize(
    ("model", "shape", "options", "said"),
    [
        (Between(nn.LayerNorm(3), features=3, after=3), VECTOR, {}, "norm by the statistics of 3 values .* power of 2"),
        (Between(nn.LayerNorm(16), features=16, after=16), VECTOR, {"default_data_fractional_bits": 8}, "layer 'function': a table of .* entries"),
        (Between(nn.Sigmoid()), VECTOR, {"default_data_fractional_bits": 18}, "layer 'function' needs a table of 2.20 entries"),
        (nn.Sequential(nn.Linear(3, 4), nn.Unflatten(1, (1, 4)), nn.AvgPool1d(3)), VECTOR, {"default_data_fractional_bits": 14}, "table of 2.18"),
        (Between(nn.Softmax(-1)), VECTOR, {"layer_specific": {"function": {"exponential": {"f": 15}}}}, "table of 2.1[78]"),
        (Between(lambda x: x.masked_fill(x > 0, 0)), VECTOR, {}, "in 'model' cannot be exported"),
        (Between(lambda x: torch.where(x > 0, x, -x)), VECTOR, {}, "in 'model' cannot be exported"),
        (Between(nn.Softmax(-1)), VECTOR, {"layer_specific": {"function": {"exponential": {"enable": False}}}}, "an exponential that stays float"),
        (Between(lambda x: x + 0.1), VECTOR, {}, "constant of add in 'model' has values of more than 16"),
        (image(nn.MaxPool2d(2, return_indices=True)), IMAGE, {}, "returns one tensor"),
    ],
)
def test_what_cannot_be_computed_is_said_before_training(model: nn.Module, shape: tuple[int, ...], options: dict[str, Any], said: str) -> None:
    compressed = compressed_net(model, shape, **COARSE | options)
    with pytest.raises(ConfigError, match=said):
        checked(compressed, shape)
        check_arithmetic(compressed, shape)


def in_place(x: Tensor) -> Tensor:
    y = x.clone()
    y += x
    return y.mul_(0.5)


INPLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "read again": lambda x: (x[:, :2].add_(1), x)[1],
    "unknown": lambda x: (x.abs_(), x)[1],
    "not returned": lambda x: (x.masked_fill_(x > 0, 0), x)[1],
}


def test_functions_that_write_in_place_are_followed() -> None:
    compared(net(Between(in_place), VECTOR, **COARSE), VECTOR)


@pytest.mark.parametrize("kind", INPLACE)
def test_functions_that_overwrite_what_is_read_again_are_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match="writes into values that are read again|cannot be exported"):
        checked(compressed_net(Between(INPLACE[kind]), VECTOR, **COARSE), VECTOR)


@pytest.mark.parametrize("value", [0.5, -1.0, 1.0])
def test_pads_of_any_value(value: float) -> None:
    compared(net(Between(lambda x: F.pad(x, (1, 0), value=value), after=5), VECTOR, **COARSE), VECTOR)


def test_a_table_beside_a_wide_sum_is_that_of_float32() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    wide = {"layer_specific": {"0": {"weight": {"f": 22}}}, "round_mode": "TRN", "use_real_tanh": True, "default_data_fractional_bits": 8}
    shape = VECTOR
    graph = checked(net(model, shape, **COARSE | wide), shape)
    assert any(
        not row.float32_exact
        for row in verify(net(model, shape, **COARSE | wide), graph, make_vectors(splits(shape).test, input_format(graph), 200)).accumulators
    )


@pytest.mark.parametrize(
    ("model", "shape", "said"),
    [
        (Between(lambda x: x.unflatten(1, (2, 2)).flatten(0, 1).softmax(0).reshape(-1, 4)), VECTOR, "batch|cannot be exported"),
        (Pair(Merge("einsum", "bi,cj->bcij")), VECTOR, "mixes the examples|mean over the batch|same batch"),
        (Between(lambda x: x + torch.tensor([[0.0, -torch.inf, 0.0, 0.0]])), VECTOR, "not finite"),
        (Between(lambda x: x / x.shape[0]), VECTOR, "cannot be exported"),
        (Between(lambda x: 2.0 / x.clamp(0.5)), VECTOR, "cannot be exported"),
        (Between(lambda x: x.to(torch.int32).float()), VECTOR, "cannot be exported"),
    ],
)
def test_calls_that_hardware_cannot_do_are_told_before_training(model: nn.Module, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        checked(compressed_net(model, shape, **COARSE), shape)

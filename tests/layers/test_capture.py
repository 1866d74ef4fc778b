"""What a captured forward must not lose: gradients, modes, state, writes, sizes, and parameters that do nothing yet."""

import copy
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.layers import PQLSTM, PQDense
from pquant.quantization import Quantization

from .test_composites import BITS, MANY

FIXED = Quantization(**BITS)
X = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two dense layers, a buffer, a parameter, and a function of all of them."""

    def __init__(self, function: Callable[["Net", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.fc2, self.function = nn.Linear(6, 6), nn.Linear(6, 6), function
        self.register_buffer("mean", torch.zeros(6))
        self.losses: dict[str, Any] = {}
        self.inner = Counting()

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


class Counting(nn.Module):
    """Holds what others count in it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.register_buffer("ema", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return x


class Reverse(torch.autograd.Function):
    """Passes values, and turns gradients around."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return -grad


def without_gradient(net: Net, x: Tensor) -> Tensor:
    with torch.no_grad():
        gate = torch.tanh(net.fc(x))
    return torch.tanh(net.fc2(x)) * gate


def in_float32(net: Net, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return torch.tanh(net.fc(x.float()))


def moving(net: Net, x: Tensor) -> Tensor:
    net.inner.ema.mul_(0.5).add_(1.0)
    return torch.tanh(net.fc(x)) * net.inner.ema


def counting(net: Net, x: Tensor) -> Tensor:
    net.inner.count += 1
    return torch.tanh(net.fc(x))


def keeping(net: Net, x: Tensor) -> Tensor:
    net.losses[str(len(net.losses))] = net.fc(x).square().mean()
    return torch.tanh(net.fc(x))


def skipping(net: Net, x: Tensor) -> Tensor:
    return x if random.random() < 0.5 else torch.tanh(net.fc(x)) + x


def skipping_by_numpy(net: Net, x: Tensor) -> Tensor:
    return x if np.random.rand() < 0.5 else torch.tanh(net.fc(x)) + x


def in_place(net: Net, x: Tensor) -> Tensor:
    x *= 3.0
    return torch.tanh(net.fc(x))


FUNCTIONS: dict[str, Callable[[Net, Tensor], Any]] = {
    "centred by a buffer": lambda net, x: torch.tanh(net.fc(x - net.mean)) * (1 - net.mean),
    "reversed gradient": lambda net, x: torch.tanh(Reverse.apply(net.fc(x))),
    "without gradient": without_gradient,
    "in float32": in_float32,
    "moving average": moving,
    "counting": counting,
    "keeping": keeping,
    "skipping": skipping,
    "skipping by numpy": skipping_by_numpy,
    "in place": in_place,
    "masked": lambda net, x: net.fc(x).mul_(3.0).masked_fill(x > 0, -torch.inf),
    "masked far": lambda net, x: torch.softmax(net.fc(x).mul_(3.0).masked_fill(x > 0, -1e9), -1),
    "by the largest": lambda net, x: torch.tanh(net.fc(x)) / x.abs().max().item(),
    "if gradients": lambda net, x: torch.tanh(net.fc(x)) if torch.is_grad_enabled() else torch.tanh(net.fc(x)) * 1,
    "if required": lambda net, x: torch.tanh(net.fc(x)) if net.fc(x).requires_grad else torch.tanh(net.fc(x)) * 1,
    "if positive": lambda net, x: torch.tanh(net.fc(x)) if x.sum().item() > 0 else torch.tanh(net.fc2(x)),
    "norm of sizes": lambda net, x: F.layer_norm(net.fc(x), x.shape[2:]),
    "pool of sizes": lambda net, x: F.avg_pool1d(net.fc(x), x.size(2)),
    "softmax in double": lambda net, x: torch.softmax(net.fc(x), -1, torch.float64).float(),
    "attention of sizes": lambda net, x: F.scaled_dot_product_attention(net.fc(x), x, x, scale=x.shape[-1] ** -0.5),
    "attention, nothing seen": lambda net, x: F.scaled_dot_product_attention(net.fc(x), x, x, attn_mask=torch.zeros(5, 5, dtype=torch.bool)),
    "of four": lambda net, x: torch.tanh(net.fc(x)).reshape(4, 30),
    "logarithm": lambda net, x: torch.log(torch.tanh(net.fc(x))),
    "cut buffer": lambda net, x: torch.tanh(net.fc(x)) * net.mean[: x.shape[-1]].add(2),
}


def outcome(model: nn.Module, calls: int) -> list[Tensor]:
    """Return outputs, inputs after the calls, gradients and buffers of some calls in training and in evaluation."""
    found = []
    for mode in (True, False):
        model.train(mode)
        for call in range(calls):
            random.seed(call)
            np.random.seed(call)
            torch.manual_seed(call)
            x = X.clone() + call
            x.requires_grad_(not mode)
            y = model(x.clone() if x.requires_grad else x)
            found += [y.detach(), x.detach()]
            model.zero_grad()
            if y.requires_grad:
                torch.nan_to_num(y, 0, 0, 0).square().mean().backward()
            found += [torch.zeros(()) if p.grad is None else p.grad.clone() for p in (model.fc.weight, model.fc2.weight)]
    return [*found, *(buffer.clone() for name, buffer in model.named_buffers() if name in ("mean", "inner.ema"))]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_does_what_the_float_model_does(name: str) -> None:
    model = Net(FUNCTIONS[name])
    compressed = pquant.compress(model, None, None, X)
    with torch.no_grad():
        for one in (model, compressed):
            one.mean.fill_(0.5)
    for mine, theirs in zip(outcome(compressed, 4), outcome(model, 4), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5, equal_nan=True)
    assert compressed.inner.count == model.inner.count and compressed.losses.keys() == model.losses.keys()
    fresh = pquant.compress(Net(FUNCTIONS[name]), None, None, X)
    fresh.load_state_dict(compressed.state_dict())
    random.seed(0)
    expected = compressed.eval()(X.clone())
    random.seed(0)
    if "skipping" not in name and name != "moving average":
        torch.testing.assert_close(fresh.eval()(X.clone()), expected, equal_nan=True)


def test_a_buffer_stays_one_and_a_cut_one_too() -> None:
    model = pquant.compress(Net(FUNCTIONS["centred by a buffer"]), None, FIXED, X)
    assert "tanh" in dict(model.named_children()) and "mean" in model.state_dict()
    cut = pquant.compress(Net(FUNCTIONS["cut buffer"]), None, FIXED, X)
    assert {"tanh", "mul"} <= dict(cut.named_children()).keys()


@pytest.mark.parametrize(
    ("function", "length"),
    [
        (lambda net, x: net.fc(x).sum(1) / x.shape[1], 3),
        (lambda net, x: net.fc(x) / math.sqrt(x.shape[1]), 7),
        (lambda net, x: net.fc(x) * (1.0 / x.size(1)), 2),
    ],
)
def test_a_factor_that_sizes_give_is_not_taken_for_another(function: Callable[[Net, Tensor], Tensor], length: int) -> None:
    model = Net(function)
    compressed = pquant.compress(model, None, None, X)
    other = torch.randn(4, length, 6)
    torch.testing.assert_close(compressed(X), model(X))
    try:
        y = compressed(other)
    except AssertionError as error:
        assert "the model was compressed with an example_input: a factor computed from sizes" in str(error)
    else:
        torch.testing.assert_close(y, model(other))


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_factor_by_the_batch_is_not_that_of_the_example(count: int) -> None:
    model = Net(lambda net, x: net.fc(x) / x.shape[0])
    compressed = pquant.compress(model, None, None, X[:count])
    torch.testing.assert_close(compressed(X), model(X))


class LowRank(nn.Linear):
    """A dense layer and a product of low rank that is 0 at first."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.a, self.b = nn.Parameter(torch.randn(6, 2)), nn.Parameter(torch.zeros(2, 6))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.a @ self.b


class Masked(nn.Linear):
    """A dense layer whose weight a mask of ones multiplies."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_buffer("mask", torch.ones_like(self.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Gated(nn.Linear):
    """A dense layer, an activation, and a gate that is shut at first."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.act, self.alpha = nn.ReLU(), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x)) + self.alpha * x


@pytest.mark.parametrize("kind", [LowRank, Masked, Gated])
def test_a_subclass_keeps_what_does_nothing_yet(kind: type[nn.Linear]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(kind(6, 6), nn.Linear(6, 6))
    compressed = pquant.compress(model, None, None, X)
    for one in (model, compressed):
        for name in ("b", "mask", "alpha"):
            if hasattr(one[0], name):
                getattr(one[0], name).data.fill_(0.3)
    torch.testing.assert_close(compressed(X), model(X))
    assert isinstance(compressed[0], kind) and isinstance(compressed[1], PQDense)


@pytest.mark.parametrize("kind", ["decoder layer", "transformer"])
def test_a_copy_of_a_transformer_keeps_its_activation(kind: str) -> None:
    torch.manual_seed(0)
    options = {"dropout": 0.0, "activation": "gelu", "batch_first": True}
    model = nn.TransformerDecoderLayer(8, 2, 16, **options) if kind == "decoder layer" else nn.Transformer(8, 2, 1, 1, 16, **options)
    example = (torch.randn(3, 4, 8), torch.randn(3, 5, 8))
    compressed = pquant.compress(model, None, None, example)
    for one in (compressed, copy.deepcopy(compressed), pquant.finalize(compressed)):
        torch.testing.assert_close(one(*example), model(*example))


def test_a_hook_sees_the_arguments_as_before() -> None:
    seen: list[int] = []
    model = Net(lambda net, x: torch.tanh(net.fc(x)))
    model.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[0]))
    compressed = pquant.compress(model, None, FIXED, X)
    compressed(X[:3])
    assert seen[-1] == 3 and "tanh" in dict(compressed.named_children())


def test_a_forward_of_the_object_itself_stays() -> None:
    model = Net(lambda net, x: torch.tanh(net.fc(x)))
    model.forward = lambda x: model.fc(x)  # type: ignore[method-assign]
    compressed = pquant.compress(nn.Sequential(model), None, None, X)
    assert "tanh" not in dict(compressed[0].named_children())


def test_a_norm_whose_weight_is_used_twice_keeps_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.rand(6))

        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(F.layer_norm(x, (6,), self.w).tanh(), (6,), self.w) + self.w

    model = Twice()
    compressed = pquant.compress(model, None, None, X)
    torch.testing.assert_close(compressed(X), model(X))
    assert compressed.w.shape == (6,)


def test_what_others_call_and_read_of_a_recurrent_layer_is_there() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.attention = nn.LSTM(6, 4, batch_first=True, dropout=0.0), nn.MultiheadAttention(4, 2, batch_first=True, dropout=0.1)

        def forward(self, x: Tensor) -> Tensor:
            self.rnn.flatten_parameters()
            y = self.rnn(x)[0] * (self.rnn.input_size / self.rnn.hidden_size)
            return self.attention(y, y, y, need_weights=False)[0] * self.attention.dropout

    model = Tagger().eval()
    compressed = pquant.compress(model, None, None, X)
    assert isinstance(compressed.rnn, PQLSTM)
    torch.testing.assert_close(compressed(X), model(X))


def test_attention_says_no_where_torch_does_and_gives_the_weights_that_torch_gives() -> None:
    torch.manual_seed(0)
    model = nn.MultiheadAttention(6, 2, batch_first=True, dropout=0.5)
    compressed = pquant.compress(model, None, None, (X, X, X))
    with pytest.raises(RuntimeError, match="is_causal"):
        compressed(X, X, X, is_causal=True)
    outputs = []
    for one in (model, compressed):
        torch.manual_seed(1)
        outputs.append(one.train()(X, X, X))
    torch.testing.assert_close(*outputs)


class Causal(nn.Module):
    """Attention written out, with a mask that is a buffer and is cut to the length of the input."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.proj, self.drop = nn.Linear(6, 18), nn.Linear(6, 6), nn.Dropout(0.1)
        self.register_buffer("mask", torch.tril(torch.ones(8, 8)).view(1, 1, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        b, t, c = x.size()
        q, k, v = (part.view(b, t, 2, c // 2).transpose(1, 2) for part in self.qkv(x).split(c, dim=2))
        weights = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
        weights = self.drop(F.softmax(weights.masked_fill(self.mask[:, :, :t, :t] == 0, float("-inf")), dim=-1))
        return self.proj((weights @ v).transpose(1, 2).contiguous().view(b, t, c))


def test_attention_written_out_is_quantized_as_a_whole() -> None:
    model = Causal().eval()
    compressed = pquant.compress(model, None, Quantization(**MANY), X)
    assert pquant.unconverted(compressed, X) == [] and set(pquant.coverage(compressed).values()) == {1.0}
    for x in (X, torch.randn(2, 8, 6), torch.randn(1, 1, 6)):
        assert float((compressed(x) - model(x)).abs().max()) < 5e-3
        first = compressed(x)[:, :1]
        assert torch.equal(compressed(torch.cat((x[:, :1], x[:, 1:] + 1), 1))[:, :1], first), "later positions have no effect on earlier ones"

"""Functional code becomes layers where it can be captured; what cannot stays as it is, and is told."""

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pquant
from pquant.layers import PQActivation, PQAvgPool2d, PQConstant, PQDense, PQLayerNorm, PQMean, PQMerge, PQScale, PQSoftmax, ScaledDotProductAttention
from pquant.pruning import DST
from pquant.quantization import Quantization

from .test_composites import BITS, MANY
from .test_layers import at_each_stage

FIXED, TRAINED, FINE = Quantization(**BITS), Quantization(**BITS, use_hgq=True, data_granularity="per_channel"), Quantization(**MANY)


class Does(nn.Module):
    """A dense layer, then some function of its output and of the module itself."""

    def __init__(self, function: Callable[["Does", Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.function = nn.Linear(6, 6), function
        self.gain = nn.Parameter(torch.rand(6) + 0.5)
        self.register_buffer("shift", torch.rand(6))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.fc(x))


ONE: dict[str, tuple[Callable[[Does, Tensor], Tensor], type[nn.Module]]] = {
    "relu": (lambda m, x: F.relu(x), PQActivation),
    "relu of torch": (lambda m, x: torch.relu(x), PQActivation),
    "relu in place": (lambda m, x: F.relu(x, inplace=True), PQActivation),
    "method in place": (lambda m, x: x.relu_(), PQActivation),
    "gelu": (lambda m, x: F.gelu(x, approximate="tanh"), PQActivation),
    "silu": (lambda m, x: F.silu(x), PQActivation),
    "sigmoid": (lambda m, x: x.sigmoid(), PQActivation),
    "tanh": (lambda m, x: torch.tanh(x), PQActivation),
    "leaky relu": (lambda m, x: F.leaky_relu(x, 0.2), PQActivation),
    "elu": (lambda m, x: F.elu(x, alpha=0.5), PQActivation),
    "hardtanh": (lambda m, x: F.hardtanh(x, -0.5, 2.0), PQActivation),
    "softplus": (lambda m, x: F.softplus(x, 2), PQActivation),
    "clamp": (lambda m, x: x.clamp(-0.5, 0.25), PQActivation),
    "clamp from below": (lambda m, x: torch.clamp(x, min=0), PQActivation),
    "relu6": (lambda m, x: F.relu6(x), PQActivation),
    "softmax": (lambda m, x: F.softmax(x, dim=-1), PQSoftmax),
    "softmax method": (lambda m, x: x.softmax(1), PQSoftmax),
    "product": (lambda m, x: x * torch.flip(x, (1,)), PQMerge),
    "product in place": (lambda m, x: x.mul_(x + 1), PQMerge),
    "augmented product": (lambda m, x: augmented(x), PQMerge),
    "square": (lambda m, x: x**2, PQMerge),
    "square of torch": (lambda m, x: torch.square(x), PQMerge),
    "matmul": (lambda m, x: x @ x.transpose(1, 2), PQMerge),
    "bmm": (lambda m, x: torch.bmm(x, x.transpose(1, 2)), PQMerge),
    "einsum": (lambda m, x: torch.einsum("bij,bkj->bik", x, x), PQMerge),
    "einsum of a list": (lambda m, x: torch.einsum("bij,bkj->bik", [x, x]), PQMerge),
    "factor": (lambda m, x: 0.3 * x, PQScale),
    "factor by size": (lambda m, x: x * x.shape[-1] ** -0.5, PQScale),
    "quotient": (lambda m, x: x / 3, PQScale),
    "mean": (lambda m, x: x.mean(1), PQMean),
    "mean of two axes": (lambda m, x: torch.mean(x, (1, 2), keepdim=True), PQMean),
    "average pool": (lambda m, x: F.avg_pool2d(x[:, None], 2), PQAvgPool2d),
    "adaptive average pool": (lambda m, x: F.adaptive_avg_pool2d(x[:, None], 1), PQAvgPool2d),
    "layer norm": (lambda m, x: F.layer_norm(x, (6,)), PQLayerNorm),
    "attention": (lambda m, x: F.scaled_dot_product_attention(x, x, x), ScaledDotProductAttention),
    "causal attention": (lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True, scale=0.3), ScaledDotProductAttention),
    "parameter": (lambda m, x: x + m.gain, PQConstant),
    "linear": (lambda m, x: F.linear(x, m.fc.weight, m.fc.bias), PQDense),
}


def augmented(x: Tensor) -> Tensor:
    x *= x + 1
    return x


X = torch.randn(5, 4, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ONE)
def test_a_call_becomes_its_layer(name: str) -> None:
    function, kind = ONE[name]
    model = Does(function).eval()
    compressed = pquant.compress(model, None, FINE, X)
    assert any(isinstance(child, kind) for child in compressed.children())
    assert pquant.unconverted(compressed, X) in ([], ["Does (model)"]) and type(compressed).__name__ == "Does" and isinstance(compressed, Does)
    assert 0 <= float((compressed(X) - model(X)).abs().max()) < 5e-3
    assert torch.equal(pquant.finalize(compressed)(X), compressed(X))
    other = torch.randn(3, 4, 6)
    assert float((compressed(other) - model(other)).abs().max()) < 2e-2
    assert torch.equal(copy.deepcopy(compressed)(X), compressed(X))
    assert type(model) is Does and list(dict(model.named_children())) == ["fc"]


@pytest.mark.parametrize("section", [FIXED, TRAINED], ids=["fixed", "trained"])
@pytest.mark.parametrize("name", ONE)
def test_it_trains_and_is_finalized_at_any_stage(name: str, section: Quantization) -> None:
    model = pquant.compress(Does(ONE[name][0]), DST(threshold_init=0.05), section, X)
    for stage in at_each_stage(model, X):
        y = model.eval()(X)
        assert torch.equal(pquant.finalize(model)(X), y), stage
    fresh = pquant.compress(Does(ONE[name][0]), DST(threshold_init=0.05), section, X)
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(X), y)


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: x * 0.5,
        lambda m, x: x / -4,
        lambda m, x: x.sum(1),
        lambda m, x: x.amax(1) - x.min(1).values,
        lambda m, x: torch.cat([x, -x], 1) + x.repeat(1, 2, 1),
        lambda m, x: torch.where(x > 0, x, torch.zeros_like(x)),
    ],
)
def test_what_makes_no_new_grid_needs_no_layer(function: Callable[[Does, Tensor], Tensor]) -> None:
    model = pquant.compress(Does(function), None, FIXED, X)
    assert {name for name, _ in model.named_children()} <= {"fc", "gain_constant"} and pquant.unconverted(model, X) == ["Does (model)"]


class Stateful(Does):
    """Counts its calls."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls = getattr(self, "calls", 0) + 1
        return torch.tanh(self.fc(x))


def by_value(m: Does, x: Tensor) -> Tensor:
    return torch.tanh(x) if x.sum() > 0 else x


def in_training(m: Does, x: Tensor) -> Tensor:
    return torch.sigmoid(x) if m.training else torch.tanh(x)


def by_batch(m: Does, x: Tensor) -> Tensor:
    return torch.tanh(x) * 3 if x.shape[0] == len(X) else torch.tanh(x)


class Starred(Does):
    """Takes any number of arguments."""

    def forward(self, *args: Tensor) -> Tensor:
        return torch.tanh(self.fc(args[0]))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Stateful(None), "it keeps state of its own: calls"),
        (Does(by_value), "values decide what it computes"),
        (Does(in_training), "it computes something else in training"),
        (Starred(None), "its forward takes *args or **kwargs"),
        (Does(by_batch), "sizes decide what it computes"),
        (Does(lambda m, x: torch.tanh(x) * len(x)), "call torch.fx.wrap('len') at module scope"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_captured_stays_float_and_says_why(model: Does, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    model.gain = None
    with caplog.at_level(logging.WARNING):
        compressed = pquant.compress(model, None, FIXED, X)
    assert type(compressed) is type(model) and list(dict(compressed.named_children())) == ["fc"]
    assert any(message.startswith("stays float: tanh (model)") and message.endswith(reason) for message in caplog.messages), caplog.messages
    assert compressed(X).shape == X.shape


def test_dropout_by_function_still_drops_in_training_alone() -> None:
    model = pquant.compress(Does(lambda m, x: F.dropout(torch.tanh(x), 0.5, m.training)), None, FIXED, X)
    assert isinstance(model.dropout, nn.Dropout) and model.dropout.p == 0.5
    assert torch.equal(model.eval()(X), model(X)) and not torch.equal(model.train()(X), model(X))
    assert 0.3 < float((model(X) == 0).float().mean()) < 0.7
    attention = pquant.compress(Does(lambda m, x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.4 if m.training else 0.0)), None, FIXED, X)
    assert attention.attention.dropout.p == 0.4


def test_arguments_and_sizes_that_the_example_had_not_are_refused_clearly() -> None:
    class Optional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x: Tensor, mask: Tensor | None = None, factor: float = 0.3) -> Tensor:
            y = torch.tanh(self.fc(x)) * factor
            if y.shape[1] > 4:
                y = y[:, :4]
            return y if mask is None else y * mask

    model = pquant.compress(Optional(), None, FIXED, X)
    assert model(torch.randn(2, 3, 6)).shape == (2, 3, 6)
    for args, said in (
        ((X, X), "argument 'mask' must be None"),
        ((X, None, 0.5), "argument 'factor' must be 0.3"),
        ((X.repeat(1, 2, 1),), "another branch"),
    ):
        with pytest.raises(AssertionError, match=f"the model was compressed with an example_input: .*{said}"):
            model(*args)


def test_modules_without_children_and_blocks_inside_blocks() -> None:
    class Swish(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(x)

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.act = nn.Linear(6, 6), Swish()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.act(self.fc(x)) * 0.3

    model = pquant.compress(nn.Sequential(Block(), Block()), None, Quantization(**BITS, layer_specific={"*.act.sigmoid": {"output": {"f": 8}}}), X)
    names = {name for name, module in model.named_modules() if isinstance(module, pquant.layers.QuantizedLayer)}
    assert names == {f"{at}.{name}" for at in "01" for name in ("fc", "act.sigmoid", "act.mul", "mul")}
    assert model[0].act.sigmoid.output_quantizer.numbers == (1, 3, 8) and isinstance(model[0], Block) and isinstance(model[1].act, Swish)


def test_a_module_whose_train_returns_nothing() -> None:
    class Odd(Does):
        def train(self, mode: bool = True) -> None:  # type: ignore[override]
            super().train(mode)

    model = pquant.compress(Odd(lambda m, x: torch.tanh(x)), None, FIXED, X)
    model.eval()
    assert torch.equal(pquant.finalize(model)(X), model(X))


def test_a_subclass_keeps_its_class_and_methods() -> None:
    class Named(nn.Linear):
        def greet(self) -> str:
            return f"{self.in_features} in"

    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    model = pquant.compress(nn.Sequential(Named(6, 4), Own(4, 3)), DST(), FIXED, X)
    assert isinstance(model[0], (PQDense, Named)) and model[0].greet() == "6 in" and type(model[0]).__name__ == "PQNamed"
    assert pquant.unconverted(model, X) == ["Own (1)"]
    same = pquant.compress(nn.Sequential(Same(6, 4), Followed(4, 4)), None, FIXED, X)
    assert isinstance(same[0], (PQDense, Same)) and isinstance(same[1].layer, PQDense) and isinstance(same[1].act, PQActivation)
    assert pquant.unconverted(same, X) == []
    assert torch.equal(pquant.finalize(model)(X), model.eval()(X)) and copy.deepcopy(model)[0].greet() == "6 in"


class Same(nn.Linear):
    """Does what torch's layer does, in a forward of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Followed(nn.Linear):
    """A dense layer with an activation inside it."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(F.linear(x, self.weight, self.bias))


def test_many_places_are_one_line() -> None:
    from pquant.layers.unconverted import grouped

    left = [("gelu", f"blocks.{at}.mlp", "") for at in range(12)] + [("sin", "head", "why"), ("LSTM", "", "")]
    assert grouped(left) == ["12 x gelu (blocks.*.mlp)", "sin (head): why", "LSTM (model)"]
    read = [("Linear", f"b.{at}.qkv", f"read in 'b.{at}'") for at in range(7)]
    assert grouped(read) == ["7 x Linear (b.*.qkv): read in 'b.*'"] and grouped(read[:1]) == ["Linear (b.0.qkv): read in 'b.0'"]
    assert grouped([("a", f"x{at}", "") for at in range(9)]) == ["9 x a (x0, x1, x2, x3, x4 and 4 more)"]

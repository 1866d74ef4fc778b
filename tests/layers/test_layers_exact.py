"""Layers of products, norms, softmax, tables and lookups in every rounding and overflow mode, against exact fractions."""

import itertools
import math
from fractions import Fraction
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn

import pquant
from pquant.layers import Mean, PQMerge, Scale, ScaledSoftmax
from pquant.quantization import Quantization
from pquant.quantization.fixed_point import OverflowMode, RoundMode

from ..quantization.test_fixed_point_exact import exact

DATA, WEIGHT = (1, 2, 3), (1, 0, 4)
"""(k, i, f) of data and of weights; 6 bits, so that exponentials have f = 5 and reciprocals f = 11."""
MODES = list(itertools.product(get_args(RoundMode), get_args(OverflowMode)))
modes = pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)


def section(round_mode: str, overflow_mode: str, **settings: Any) -> Quantization:
    return Quantization(
        default_data_keep_negatives=True,
        default_data_integer_bits=DATA[1],
        default_data_fractional_bits=DATA[2],
        default_weight_keep_negatives=True,
        default_weight_integer_bits=WEIGHT[1],
        default_weight_fractional_bits=WEIGHT[2],
        round_mode=round_mode,
        overflow_mode_data=overflow_mode,
        overflow_mode_parameters=overflow_mode,
        **settings,
    )


class Exact:
    """Quantizes numbers one by one, as fractions."""

    def __init__(self, round_mode: str, overflow_mode: str) -> None:
        self.modes = round_mode, overflow_mode

    def __call__(self, value: Any, bits: tuple[int, int, int]) -> Fraction:
        return Fraction(exact(float(value), bits, *self.modes))

    def data(self, values: Tensor) -> list[Fraction]:
        return [self(value, DATA) for value in values.flatten().tolist()]


def as_tensor(values: list[Any], shape: Any) -> Tensor:
    return torch.tensor([float(value) for value in values]).view(shape)


@modes
@pytest.mark.parametrize("kind", ["add", "sub", "mul", "maximum", "minimum", "matmul", "einsum"])
def test_merges(kind: str, round_mode: str, overflow_mode: str) -> None:
    torch.manual_seed(0)
    q = Exact(round_mode, overflow_mode)
    a, b = torch.randn(2, 3, 4) * 3, torch.randn(2, 3, 4) * 3
    equation = "bij,bkj->bik" if kind == "einsum" else None
    b = b.transpose(1, 2).contiguous() if kind == "matmul" else b
    layer = PQMerge(kind, equation, quantization=section(round_mode, overflow_mode))
    x, y = q.data(a), q.data(b)
    if kind in ("matmul", "einsum"):
        results = [
            sum(x[n * 12 + i * 4 + j] * (y[n * 12 + j * 3 + k] if kind == "matmul" else y[n * 12 + k * 4 + j]) for j in range(4))
            for n in range(2)
            for i in range(3)
            for k in range(3)
        ]
    else:
        one = {"add": Fraction.__add__, "sub": Fraction.__sub__, "mul": Fraction.__mul__, "maximum": max, "minimum": min}[kind]
        results = [one(u, v) for u, v in zip(x, y, strict=True)]
    got = layer(a, b)
    assert torch.equal(got, as_tensor([q(value, DATA) for value in results], got.shape))


@modes
def test_a_factor_keeps_as_many_significant_bits_as_a_weight(round_mode: str, overflow_mode: str) -> None:
    q, x = Exact(round_mode, overflow_mode), torch.linspace(-5, 5, 41)
    model = pquant.compress(Scale(0.3), None, section(round_mode, overflow_mode), x[:, None])
    saturating = Exact(round_mode, overflow_mode if overflow_mode.startswith("SAT") else "SAT")
    constant = saturating(torch.tensor(0.3), (1, -1, 5))
    assert Fraction(float(model.constant)) == constant
    assert torch.equal(model(x), as_tensor([q(value * constant, DATA) for value in q.data(x)], x.shape))


@modes
def test_a_mean(round_mode: str, overflow_mode: str) -> None:
    q, x = Exact(round_mode, overflow_mode), torch.randn(5, 4, 3) * 2
    model = pquant.compress(Mean(1), None, section(round_mode, overflow_mode), x)
    values = torch.tensor([float(value) for value in q.data(x)]).view(5, 4, 3)
    expected = [q(Fraction(value) / 4, DATA) for value in values.sum(1).flatten().tolist()]
    assert torch.equal(model(x), as_tensor(expected, (5, 3)))


@modes
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_softmax(scale: float, round_mode: str, overflow_mode: str) -> None:
    torch.manual_seed(1)
    q, x = Exact(round_mode, overflow_mode), torch.randn(7, 5) * 3
    model = pquant.compress(ScaledSoftmax(-1, scale), None, section(round_mode, overflow_mode), x)
    rows = []
    for row in (x * scale).tolist():
        values = [q(value, DATA) for value in row]
        exponentials = [q(float(torch.exp(torch.tensor(float(value - max(values))))), (0, 1, 5)) for value in values]
        total = sum(exponentials)
        reciprocal = q(float(1 / torch.tensor(float(total))) if total else 0, (0, 1, 11))
        rows += [q(value * reciprocal, DATA) for value in exponentials]
    assert torch.equal(model(x), as_tensor(rows, x.shape))


def test_a_softmax_gives_nothing_to_what_is_masked() -> None:
    x = torch.tensor([[1.0, -torch.inf, 0.5, torch.finfo().min], [-torch.inf] * 4, [-3.0, -torch.inf, -3.5, -torch.inf]])
    model = pquant.compress(nn.Softmax(-1), None, section("RND", "SAT", quantize_output=False), x[:1].nan_to_num(0, 0, 0))
    x.requires_grad_()
    y = model(x)
    assert not y[:, [1, 3]].any() and not y[1].any()
    alone = model(x[:, [0, 2]])
    assert torch.equal(y[[0, 2]][:, [0, 2]], alone[[0, 2]])
    y.square().sum().backward()
    assert bool(x.grad.isfinite().all()) and not x.grad[:, [1, 3]].any()


@modes
@pytest.mark.parametrize("name", ["layer", "rms", "group", "instance"])
def test_norms(name: str, round_mode: str, overflow_mode: str) -> None:
    """Groups of four values, so that all sums and means are exact in float32, and a reciprocal of few bits, so that products are."""
    torch.manual_seed(2)
    layer = {
        "layer": nn.LayerNorm(4),
        "rms": nn.RMSNorm(4, eps=1e-5),
        "group": nn.GroupNorm(2, 4),
        "instance": nn.InstanceNorm1d(2, affine=True),
    }[name]
    shape = {"layer": (6, 4), "rms": (6, 4), "group": (6, 4, 2), "instance": (6, 2, 4)}[name]
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    q, x = Exact(round_mode, overflow_mode), torch.randn(shape) * 2
    settings = {"*": {"reciprocal": {"f": 4}}}
    model = pquant.compress(layer, None, section(round_mode, overflow_mode, layer_specific=settings), x)
    final = pquant.finalize(model.eval())
    assert torch.equal(final(x), model(x))
    values = as_tensor(q.data(x), shape)
    groups = values.view(6, 2, -1) if name == "group" else values
    centred = groups if name == "rms" else groups - groups.mean(-1, keepdim=True)
    sigma = torch.rsqrt(centred.square().mean(-1, keepdim=True) + 1e-5)
    reciprocal = model.reciprocal_quantizer(sigma)
    saturating = Exact(round_mode, overflow_mode if overflow_mode.startswith("SAT") else "SAT")
    for value, given in zip(sigma.flatten().tolist(), reciprocal.flatten().tolist(), strict=True):
        exponent = math.frexp(value)[1]
        assert given in {float(saturating(value, (0, exponent + more, 5 - exponent - more))) for more in (0, 1)}
    normalized = (centred * reciprocal).view(shape).double()
    by_feature = (-1,) if name in ("layer", "rms") else (-1, 1)
    weight = final.weight.view(by_feature).double()
    bias = final.bias.view(by_feature).double() if name != "rms" else 0
    expected = [q(value, DATA) for value in (normalized * weight + bias).flatten().tolist()]
    assert torch.equal(model(x), as_tensor(expected, shape))


@modes
def test_a_transposed_convolution(round_mode: str, overflow_mode: str) -> None:
    torch.manual_seed(3)
    layer, x = nn.ConvTranspose1d(2, 4, 3, stride=2, groups=2), torch.randn(2, 2, 3) * 2
    q = Exact(round_mode, overflow_mode)
    model = pquant.compress(layer, None, section(round_mode, overflow_mode), x)
    weight = [[[q(v, WEIGHT) for v in kernel] for kernel in outputs] for outputs in layer.weight.tolist()]
    bias = [q(v, WEIGHT) for v in layer.bias.tolist()]
    data = q.data(x)
    expected = []
    for n, out, position in itertools.product(range(2), range(4), range(7)):
        total, group = bias[out], out // 2
        for at, tap in itertools.product(range(3), range(3)):
            if 2 * at + tap == position:
                total += data[n * 6 + group * 3 + at] * weight[group][out % 2][tap]
        expected.append(q(total, DATA))
    assert torch.equal(model(x), as_tensor(expected, (2, 4, 7)))
    assert torch.equal(pquant.finalize(model)(x), model(x))


@modes
def test_an_embedding(round_mode: str, overflow_mode: str) -> None:
    torch.manual_seed(4)
    layer, tokens = nn.Embedding(6, 3, padding_idx=0), torch.randint(0, 6, (4, 5))
    q = Exact(round_mode, overflow_mode)
    model = pquant.compress(layer, None, section(round_mode, overflow_mode, quantize_output=False), tokens)
    table = [[q(v, WEIGHT) for v in row] for row in layer.weight.tolist()]
    assert torch.equal(model(tokens), as_tensor([v for token in tokens.flatten().tolist() for v in table[token]], (4, 5, 3)))
    assert torch.equal(pquant.finalize(model)(tokens), model(tokens))


@modes
def test_a_max_pool(round_mode: str, overflow_mode: str) -> None:
    q, x = Exact(round_mode, overflow_mode), torch.randn(2, 3, 8) * 3
    model = pquant.compress(nn.MaxPool1d(2), None, section(round_mode, overflow_mode), x)
    values = as_tensor(q.data(x), x.shape)
    assert torch.equal(model(x), torch.maximum(values[..., 0::2], values[..., 1::2]))

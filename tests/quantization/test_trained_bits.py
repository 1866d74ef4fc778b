"""Trained bits against their formula in plain Python, value by value: q, and its derivatives by x, i and f, summed over what shares a bit width."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import pquant
from pquant.layers import PQDense
from pquant.quantization import Quantization, TensorFormat
from pquant.quantization.fixed_point import RoundMode
from pquant.quantization.hgq import HGQQuantizer

LN2 = math.log(2)
ROUND_MODES = get_args(RoundMode)
HALF = Fraction(1, 2)
GRANULARITIES = ["per_tensor", "per_channel", "per_weight"]
TRAINED = Quantization(use_hgq=True)
Derived = tuple[float, float, float, float]
"""q, dq/dx, dq/di, dq/df."""

TIE_GOES_UP: dict[str, Callable[[int, bool], bool]] = {
    "RND": lambda floor, negative: True,
    "RND_CONV": lambda floor, negative: floor % 2 == 1,
    "RND_ZERO": lambda floor, negative: negative,
    "RND_INF": lambda floor, negative: not negative,
    "RND_MIN_INF": lambda floor, negative: False,
}


def rounded(x: float, f: int, mode: str) -> float:
    """Return ``x`` rounded to ``f`` fractional bits, exactly."""
    v = Fraction(x) * Fraction(2) ** f
    floor = math.floor(v)
    if mode.startswith("TRN"):
        n = math.trunc(v) if mode == "TRN_ZERO" else floor
    else:
        n = floor + (v - floor > HALF or v - floor == HALF and TIE_GOES_UP[mode](floor, v < 0))
    return float(n * Fraction(2) ** -f)


def derived(x: float, k: int, i: float, f: float, round_mode: str = "RND", overflow_mode: str = "SAT") -> Derived:
    """Return the value and the derivatives of one value under trained bits, which take effect as the nearest whole ones."""
    i, f = round(i), round(f)
    if k + i + f <= 0:
        return 0.0, 1.0, 0.0, LN2 * x
    top, step = 2.0**i, 2.0**-f
    high = top - step
    low = -k * (high if overflow_mode == "SAT_SYM" else top)
    if x > high:
        return high, 0.0, LN2 * top, LN2 * step
    if x < low:
        return low, 0.0, -LN2 * k * top, -LN2 * k * step if overflow_mode == "SAT_SYM" else 0.0
    q = rounded(x, f, round_mode)
    return q, 1.0, 0.0, LN2 * (x - q)


def quantizer(granularity: str = "per_tensor", shape: tuple[int, ...] = (3, 4), k: int = 1, i: Any = 1.0, f: Any = 3.0, **modes: Any) -> Any:
    """Return the quantizer of a weight of ``shape`` in double precision; ``i`` and ``f`` are one number, or one for each bit width."""
    made = TRAINED.weight_quantizer(TensorFormat(k=bool(k), granularity=granularity, **modes), shape).double()
    with torch.no_grad():
        for bits, values in ((made.i, i), (made.f, f)):
            bits.copy_(torch.as_tensor(values, dtype=torch.float64).view(bits.shape) if isinstance(values, (list, Tensor)) else torch.tensor(values))
    return made


def slopes(made: Any, values: list[float]) -> list[Derived]:
    """Return what a quantizer with one bit width gives for each value by itself."""
    found = []
    for value in values:
        x = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        made.zero_grad()
        q = made(x)
        q.backward(torch.ones_like(q))
        assert x.grad is not None
        found.append((q.item(), x.grad.item(), made.i.grad.item(), made.f.grad.item()))
    return found


def check(made: Any, values: list[float], *arguments: Any) -> None:
    for value, mine in zip(values, slopes(made, values), strict=True):
        assert mine == pytest.approx(derived(value, *arguments), rel=1e-8, abs=1e-12), value


def test_inside_the_range_the_fractional_bits_feel_the_error() -> None:
    ((q, dx, di, df),) = slopes(quantizer(i=1.0, f=3.0), [0.3])
    assert (q, dx, di) == (0.25, 1, 0) and df == pytest.approx(0.034657, abs=1e-6), "ln 2 * 0.05"


def test_doubles_have_derivatives_with_the_digits_of_doubles() -> None:
    ((_, _, di, df),) = slopes(quantizer(i=2.0, f=3.0), [9.0])
    assert (di, df) == pytest.approx((LN2 * 4, LN2 / 8), rel=1e-14)


def test_at_the_upper_bound_both_bits_feel_where_it_goes() -> None:
    for overflow_mode in ("SAT", "SAT_SYM"):
        for k in (0, 1):
            ((q, dx, di, df),) = slopes(quantizer(k=k, i=2.0, f=3.0, overflow_mode=overflow_mode), [9.0])
            assert (q, dx) == (3.875, 0) and (di, df) == pytest.approx((LN2 * 4, LN2 / 8))


def test_at_the_lower_bound_the_integer_bits_feel_it_where_there_is_a_sign() -> None:
    assert slopes(quantizer(k=1, i=2.0, f=3.0), [-9.0])[0] == pytest.approx((-4, 0, -LN2 * 4, 0))
    assert slopes(quantizer(k=0, i=2.0, f=3.0), [-9.0])[0] == pytest.approx((0, 0, 0, 0))


def test_a_symmetric_lower_bound_has_minus_the_derivatives_of_the_upper_one() -> None:
    below, above = slopes(quantizer(k=1, i=2.0, f=3.0, overflow_mode="SAT_SYM"), [-9.0, 9.0])
    assert below == pytest.approx((-3.875, 0, -LN2 * 4, -LN2 / 8)) and above == pytest.approx(tuple(-value for value in below))
    assert slopes(quantizer(k=0, i=2.0, f=3.0, overflow_mode="SAT_SYM"), [-9.0])[0] == pytest.approx((0, 0, 0, 0))


@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("k", [0, 1])
def test_the_bounds_themselves_are_inside(k: int, overflow_mode: str) -> None:
    made = quantizer(k=k, i=2.0, f=3.0, overflow_mode=overflow_mode)
    low = -k * (3.875 if overflow_mode == "SAT_SYM" else 4.0)
    around = [math.nextafter(bound, to) for bound in (3.875, low or 1e-9) for to in (-math.inf, math.inf)]
    assert slopes(made, [3.875, low]) == [(3.875, 1, 0, 0), (low, 1, 0, 0)]
    check(made, around, k, 2, 3, "RND", overflow_mode)


@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize(("k", "i", "f"), [(1, 0.0, -1.0), (1, -3.0, 2.0), (0, 0.0, 0.0), (0, 1.0, -4.0), (1, -9.0, -9.0), (1, -0.6, -0.4)])
def test_without_bits_the_value_is_zero_and_the_fractional_bits_feel_all_of_it(k: int, i: float, f: float, overflow_mode: str) -> None:
    made = quantizer(k=k, i=i, f=f, overflow_mode=overflow_mode)
    for x, (q, dx, di, df) in zip([0.3, -2.5, 0.0, 70.0], slopes(made, [0.3, -2.5, 0.0, 70.0]), strict=True):
        assert (q, dx, di) == (0, 1, 0) and df == pytest.approx(LN2 * x)


@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
def test_with_a_sign_bit_alone_there_is_one_value_below_zero_or_none(overflow_mode: str) -> None:
    for f in (0.0, 2.0, -2.0):
        made = quantizer(k=1, i=-f, f=f, overflow_mode=overflow_mode)
        check(made, [-9.0, -(2.0**-f), -0.7 * 2.0**-f, -0.1 * 2.0**-f, 0.0, 1e-3, 9.0], 1, -f, f, "RND", overflow_mode)


@pytest.mark.parametrize("round_mode", ROUND_MODES)
def test_ties(round_mode: str) -> None:
    made = quantizer(i=5.0, f=1.0, round_mode=round_mode)
    check(made, [n / 4 for n in range(-11, 12)] + [math.nextafter(0.25, 0), math.nextafter(-0.25, 0)], 1, 5, 1, round_mode)


@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("round_mode", ROUND_MODES)
@settings(max_examples=40)
@given(
    values=st.lists(st.floats(-40, 40), min_size=1, max_size=6),
    k=st.integers(0, 1),
    i=st.floats(-4, 5),
    f=st.floats(-4, 8),
)
def test_values_and_derivatives_equal_the_formula(round_mode: str, overflow_mode: str, values: list[float], k: int, i: float, f: float) -> None:
    check(quantizer(k=k, i=i, f=f, round_mode=round_mode, overflow_mode=overflow_mode), values, k, i, f, round_mode, overflow_mode)


@pytest.mark.parametrize(("bits", "takes_effect"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (2.49, 2), (2.51, 3)])
def test_bits_halfway_take_effect_as_the_even_ones(bits: float, takes_effect: int) -> None:
    values = [0.3, 0.77, 2.9, -1.1, 30.0, -30.0]
    assert slopes(quantizer(i=3.0, f=bits), values) == slopes(quantizer(i=3.0, f=float(takes_effect)), values)
    assert slopes(quantizer(i=bits, f=3.0), values) == slopes(quantizer(i=float(takes_effect), f=3.0), values)


def spread(count: int, low: float, high: float, generator: torch.Generator) -> list[float]:
    """Return bits, none of them halfway between whole ones."""
    whole = torch.randint(int(low), int(high), (count,), generator=generator).double()
    return (whole + 0.8 * torch.rand(count, generator=generator, dtype=torch.float64) - 0.4).tolist()


SHARED: dict[str, Callable[[int, int, int], int]] = {  # which bit width the value at (out, in, kernel) of a weight of 3 x 4 x 2 has
    "per_tensor": lambda o, j, t: 0,
    "per_channel": lambda o, j, t: o,
    "per_weight": lambda o, j, t: 8 * o + 2 * j + t,
}


@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("k", [0, 1])
def test_derivatives_are_summed_over_what_shares_a_bit_width(k: int, granularity: str, overflow_mode: str) -> None:
    shape, where = (3, 4, 2), SHARED[granularity]
    count = 1 + max(where(*place) for place in itertools.product(*map(range, shape)))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        i, f = spread(count, -2, 3, generator), spread(count, -2, 6, generator)
        made = quantizer(granularity, shape, k, i, f, overflow_mode=overflow_mode)
        x = (3 * torch.randn(shape, generator=generator, dtype=torch.float64)).requires_grad_()
        g = torch.randn(shape, generator=generator, dtype=torch.float64)
        q = made(x)
        q.backward(g)
        di, df = [0.0] * count, [0.0] * count
        for place in itertools.product(*map(range, shape)):
            bits, weight = where(*place), g[place].item()
            value, dx, by_i, by_f = derived(x[place].item(), k, i[bits], f[bits], "RND", overflow_mode)
            assert q[place].item() == value and x.grad is not None and x.grad[place].item() == dx * weight
            di[bits] += weight * by_i
            df[bits] += weight * by_f
        assert made.i.grad.flatten().tolist() == pytest.approx(di, rel=1e-7, abs=1e-9) and made.f.grad.flatten().tolist() == pytest.approx(
            df, rel=1e-7, abs=1e-9
        )


def test_gradients_of_two_uses_add_up() -> None:
    made = quantizer(i=1.0, f=2.0)
    x = torch.tensor([0.3, 1.9, -7.0], dtype=torch.float64)
    (made(x).sum() + 2 * made(3 * x).sum()).backward()
    once = [derived(value, 1, 1, 2) for value in x.tolist()] + [derived(value, 1, 1, 2) for value in (3 * x).tolist()]
    weights = [1, 1, 1, 2, 2, 2]
    assert made.i.grad.item() == pytest.approx(sum(w * one[2] for w, one in zip(weights, once, strict=True)))
    assert made.f.grad.item() == pytest.approx(sum(w * one[3] for w, one in zip(weights, once, strict=True)))


def test_a_large_float32_tensor_has_the_sums_of_doubles() -> None:
    x = torch.randn(2**17, generator=torch.Generator().manual_seed(0)).requires_grad_()
    for granularity, shape in (("per_tensor", (2**17,)), ("per_channel", (8, 2**14))):
        made, exact = (quantizer(granularity, shape, i=0.0, f=4.0) for _ in range(2))
        y = made.float()(x.view(shape))
        z = exact(x.detach().double().view(shape))
        assert y.dtype is torch.float32 and torch.equal(y.double(), z)
        y.square().sum().backward()
        z.square().sum().backward()
        torch.testing.assert_close(made.f.grad.double(), exact.f.grad, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(made.i.grad.double(), exact.i.grad, rtol=1e-4, atol=1e-3)


def test_a_frozen_part_gets_no_gradient_and_the_others_keep_theirs() -> None:
    values = torch.tensor([0.3, 9.0, -9.0], dtype=torch.float64)
    for frozen in ("i", "f", "x"):
        made, x = quantizer(i=1.0, f=2.0), values.clone().requires_grad_(frozen != "x")
        if frozen != "x":
            getattr(made, frozen).requires_grad_(False)
        made(x).sum().backward()
        expected = [sum(column) for column in zip(*(derived(value, 1, 1, 2) for value in values.tolist()), strict=True)]
        assert made.i.grad is None if frozen == "i" else made.i.grad.item() == pytest.approx(expected[2])
        assert made.f.grad is None if frozen == "f" else made.f.grad.item() == pytest.approx(expected[3])
        assert x.grad is None if frozen == "x" else x.grad.tolist() == [1, 0, 0]


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_dense_layer_has_the_gradients_of_its_formula(granularity: str) -> None:
    """y = sum_j q(w_oj) q(x_j) + q(b_o), and each bit width's part in it."""
    section = Quantization(
        default_data_keep_negatives=True,
        default_data_integer_bits=1,
        default_data_fractional_bits=2,
        default_weight_keep_negatives=True,
        default_weight_integer_bits=-1,
        default_weight_fractional_bits=3,
        use_hgq=True,
        quantize_output=False,
        granularity=granularity,
    )
    torch.manual_seed(0)
    layer = PQDense(4, 3, dtype=torch.float64, quantization=section, name="fc").double()
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
    x = (2 * torch.randn(5, 4, dtype=torch.float64)).requires_grad_()
    g = torch.randn(5, 3, dtype=torch.float64)
    y = layer(x)
    y.backward(g)

    w = [[derived(value, 1, -1, 3) for value in row] for row in layer.weight.tolist()]
    b = [derived(value, 1, -1, 3) for value in layer.bias.tolist()]
    d = [[derived(value, 1, 1, 2) for value in row] for row in x.tolist()]
    outs, ins, batch = range(3), range(4), range(5)
    assert y.tolist() == [[sum(w[o][j][0] * d[n][j][0] for j in ins) + b[o][0] for o in outs] for n in batch]
    by_weight = [[sum(g[n, o].item() * d[n][j][0] for n in batch) for j in ins] for o in outs]
    by_data = [[sum(g[n, o].item() * w[o][j][0] for o in outs) for j in ins] for n in batch]
    by_bias = g.sum(0).tolist()

    def close(mine: Tensor | None, theirs: list) -> None:
        assert mine is not None
        torch.testing.assert_close(mine, torch.tensor(theirs, dtype=torch.float64).view(mine.shape))

    close(layer.weight.grad, [[by_weight[o][j] * w[o][j][1] for j in ins] for o in outs])
    close(x.grad, [[by_data[n][j] * d[n][j][1] for j in ins] for n in batch])
    close(layer.bias.grad, [by_bias[o] * b[o][1] for o in outs])
    for bits, index in ((layer.weight_quantizer.i, 2), (layer.weight_quantizer.f, 3)):
        each = torch.tensor([[by_weight[o][j] * w[o][j][index] for j in ins] for o in outs], dtype=torch.float64)
        close(bits.grad, each.sum_to_size(bits.shape).tolist())
    for bits, index in ((layer.bias_quantizer.i, 2), (layer.bias_quantizer.f, 3)):
        each = torch.tensor([by_bias[o] * b[o][index] for o in outs], dtype=torch.float64)
        close(bits.grad, each.sum_to_size(bits.shape).tolist())
    for bits, index in ((layer.input_quantizer.i, 2), (layer.input_quantizer.f, 3)):
        close(bits.grad, [sum(by_data[n][j] * d[n][j][index] for n in batch for j in ins)])


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_in_vmap_gradients_are_those_of_one_after_another(granularity: str) -> None:
    made = quantizer(granularity, (3, 4), i=1.0, f=2.0)
    generator = torch.Generator().manual_seed(0)
    bits = {name: torch.stack([torch.as_tensor(v, dtype=torch.float64).expand(p.shape) for v in (0.7, 2.2)]) for name, p in made.named_parameters()}
    x = 3 * torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(made, parameters, (x,)).square().sum()

    at_once = torch.vmap(torch.func.grad(loss, (0, 1)))(bits, x)
    for n in range(2):
        leaves = {name: value[n].clone().requires_grad_() for name, value in bits.items()}
        leaf = x[n].clone().requires_grad_()
        loss(leaves, leaf).backward()
        torch.testing.assert_close(at_once[1][n], leaf.grad)
        for name, one in leaves.items():
            torch.testing.assert_close(at_once[0][name][n], one.grad, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
@pytest.mark.parametrize("round_mode", ["RND", "TRN", "RND_CONV"])
def test_compiled_derivatives_equal_the_formula(round_mode: str, overflow_mode: str, granularity: str) -> None:
    torch._dynamo.reset()
    shape = (3, 4, 2)
    made, plain = (quantizer(granularity, shape, i=0.6, f=2.2, round_mode=round_mode, overflow_mode=overflow_mode) for _ in range(2))
    x = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    q = torch.compile(made, fullgraph=True)(leaf)
    q.sum().backward()
    each = [derived(value, 1, 0.6, 2.2, round_mode, overflow_mode) for value in x.flatten().tolist()]
    assert q.flatten().tolist() == [one[0] for one in each] and leaf.grad is not None
    assert leaf.grad.flatten().tolist() == [one[1] for one in each]
    plain(x).sum().backward()
    for bits, expected, index in ((made.i, plain.i, 2), (made.f, plain.f, 3)):
        torch.testing.assert_close(bits.grad, expected.grad)
        assert bits.grad.sum().item() == pytest.approx(sum(one[index] for one in each))


@pytest.mark.parametrize("mode", ["WRAP", "WRAP_SM"])
@pytest.mark.parametrize("shape", [(), (400,)], ids=["one format", "a format each"])
def test_under_wrap_each_value_keeps_its_gradient(shape: tuple[int, ...], mode: str) -> None:
    torch.manual_seed(0)
    quantizer = HGQQuantizer(TensorFormat(k=True, f=4, overflow_mode=mode), shape, math.inf)
    x = torch.randn(400, requires_grad=True)
    y = quantizer(x)
    y.sum().backward()
    error = (x - y).detach()
    assert torch.equal(x.grad, torch.ones(400)) and float(error.abs().max()) <= 2**-5
    assert torch.allclose(quantizer.f.grad, math.log(2) * error.sum_to_size(shape), atol=1e-5)
    assert torch.equal(y, (x.detach() * 16 + 0.5).floor() / 16)


def test_under_wrap_a_weight_reaches_what_it_is_pulled_to() -> None:
    quantizer = HGQQuantizer(TensorFormat(k=True, f=4, overflow_mode="WRAP"), (1,), math.inf)
    weight = torch.full((1,), 0.3, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.02)
    for _ in range(500):
        optimizer.zero_grad()
        (quantizer(weight) + 1).square().sum().backward()
        optimizer.step()
    assert float(quantizer(weight).detach()) == pytest.approx(-1, abs=2**-4)


def test_under_wrap_the_sign_comes_with_the_first_negative_value() -> None:
    quantizer = HGQQuantizer(TensorFormat(k=False, f=4, overflow_mode="WRAP"), (), 0.01)
    quantizer(torch.tensor([0.5, 1.5]))
    assert quantizer.format()[0] == 0
    values = torch.tensor([-1.25, 0.5])
    assert torch.equal(quantizer(values), values) and quantizer.format()[0] == 1
    assert torch.equal(quantizer.eval()(values), values)
    traced = HGQQuantizer(TensorFormat(k=False, f=4, overflow_mode="WRAP"), (2,), 0.01)
    traced.observe(values)
    assert traced.format()[0].tolist() == [1, 0] and torch.equal(traced.finalized()(values), values)


def test_data_without_a_sign_setting_ends_under_wrap_as_it_trained() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    section = Quantization(
        use_hgq=True, default_weight_keep_negatives=True, default_weight_fractional_bits=6, default_data_fractional_bits=6, overflow_mode_data="WRAP"
    )
    model = pquant.compress(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), None, section, x)
    trained = model.train()(x)
    pquant.trace_ranges(model, [x])
    assert torch.allclose(pquant.finalize(model)(x), trained, atol=1e-5)


@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
def test_gradients_have_gradients_as_inside_the_range_the_value_is_its_input(overflow_mode: str) -> None:
    made = quantizer(i=2.0, f=3.0, overflow_mode=overflow_mode)
    x = torch.tensor([0.3, -1.7, 9.0], dtype=torch.float64, requires_grad=True)
    q = made(x)
    (slope,) = torch.autograd.grad(q.square().sum(), x, create_graph=True)
    assert torch.equal(slope, 2 * q * torch.tensor([1.0, 1.0, 0.0]))
    (second,) = torch.autograd.grad(slope.sum(), x)
    assert second.tolist() == [2, 2, 0]


@pytest.mark.parametrize("overflow_mode", ["WRAP", "WRAP_SM"])
@pytest.mark.parametrize("forget", [math.inf, 0.25])
def test_wrapping_values_have_a_straight_through_gradient_in_evaluation(forget: float, overflow_mode: str) -> None:
    made = HGQQuantizer(TensorFormat(k=True, i=2, f=3, overflow_mode=overflow_mode), (), forget).eval()  # type: ignore[arg-type]
    x = torch.tensor([0.3, -1.7], requires_grad=True)
    made(x).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 1]


def test_the_range_of_a_weight_is_not_asked_of_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(values: Tensor) -> Tensor:
        raise AssertionError("process 0 alone finalizes and evaluates: it would wait for the others")

    monkeypatch.setattr("pquant.training.distributed.highest", refuse)
    made = HGQQuantizer(TensorFormat(k=True, i=0, f=3, overflow_mode="WRAP"), (), math.inf)
    for training in (True, False):
        assert made.train(training)(torch.tensor([5.0])).item() == 5
    with pytest.raises(AssertionError, match="process 0"):
        HGQQuantizer(TensorFormat(k=True, i=0, f=3, overflow_mode="WRAP"), (), 0.25)(torch.tensor([5.0]))

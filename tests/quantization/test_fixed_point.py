"""Fixed-point values against arithmetic in plain Python integers, and against the `quantizers` package."""

import itertools
import math
from fractions import Fraction
from functools import cache
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from quantizers import get_fixed_quantizer_np

from pquant.quantization import fixed_point
from pquant.quantization.fixed_point import OverflowMode, RoundMode

ROUND_MODES, OVERFLOW_MODES = get_args(RoundMode), get_args(OverflowMode)
MODES = list(itertools.product(ROUND_MODES, OVERFLOW_MODES))
FORMATS = [(k, i, f) for k in (0, 1) for i in range(-4, 7) for f in range(-4, 7) if -1 <= k + i + f <= 6]
GRID = 8  # points a step


def rounded(numerator: int, denominator: int, mode: str) -> int:
    """Return numerator / denominator as a whole number."""
    floor, rest = divmod(numerator, denominator)
    tie, past, negative = 2 * rest == denominator, 2 * rest > denominator, numerator < 0
    up = {
        "TRN": False,
        "TRN_ZERO": negative and rest > 0,
        "RND": past or tie,
        "RND_CONV": past or (tie and floor % 2 == 1),
        "RND_ZERO": past or (tie and negative),
        "RND_INF": past or (tie and not negative),
        "RND_MIN_INF": past,
    }
    return floor + up[mode]


def overflowed(n: int, k: int, width: int, mode: str) -> int:
    """Return a whole number as a word of ``width`` bits, the sign included, holds it."""
    if width <= 0:
        return 0
    low, high = -k * 2 ** (width - k), 2 ** (width - k) - 1
    if mode in ("SAT", "SAT_SYM"):
        return min(max(n, -k * high if mode == "SAT_SYM" else low), high)
    word = n & (2**width - 1)
    if mode == "WRAP_SM" and (n >> width) & 1 != (k and (n >> (width - 1)) & 1):  # the lowest deleted bit and the sign differ
        word ^= 2**width - 1
    return word - 2**width if k and word >> (width - 1) else word


@cache
def reference(k: int, width: int, round_mode: str, overflow_mode: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs in parts of a step and the values in steps, far beyond both ends of the range."""
    reach = GRID * 3 * 2 ** max(width, 1)
    parts = range(-reach - 5, reach + 5)
    return torch.tensor(parts, dtype=torch.float64), torch.tensor([overflowed(rounded(n, GRID, round_mode), k, width, overflow_mode) for n in parts])


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_all_formats_up_to_six_bits_equal_integer_arithmetic(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    for k, i, f in FORMATS:
        parts, expected = reference(k, k + i + f, round_mode, overflow_mode)
        for dtype in (torch.float32, torch.float64):
            x = (parts * 2.0**-f / GRID).to(dtype)
            q = fixed_point(x, k, i, f, round_mode, overflow_mode)
            assert q.dtype == dtype
            assert torch.equal(q.double(), expected * 2.0**-f), (k, i, f, dtype)


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
def test_the_gradient_is_one_inside_and_zero_where_clipped_or_without_bits(overflow_mode: OverflowMode) -> None:
    for k, i, f in FORMATS:
        width = k + i + f
        parts, _ = reference(k, width, "RND", overflow_mode)
        high = 2 ** (width - k) - 1
        low = -k * (high if overflow_mode == "SAT_SYM" else high + 1)
        inside = (parts >= GRID * low) & (parts <= GRID * high) if overflow_mode.startswith("SAT") else torch.ones_like(parts).bool()
        expected = (inside & (width > 0)).float() * 3
        for bits in ((k, i, f), tuple(torch.tensor(float(b)) for b in (k, i, f))):
            x = (parts * 2.0**-f / GRID).float().requires_grad_()
            fixed_point(x, *bits, "RND", overflow_mode).backward(torch.full_like(x, 3.0))
            assert torch.equal(x.grad, expected), (k, i, f)


TIES = {
    "TRN": [-3, -2, -1, 0, 1, 2],
    "TRN_ZERO": [-2, -1, 0, 0, 1, 2],
    "RND": [-2, -1, 0, 1, 2, 3],
    "RND_CONV": [-2, -2, 0, 0, 2, 2],
    "RND_ZERO": [-2, -1, 0, 0, 1, 2],
    "RND_INF": [-3, -2, -1, 1, 2, 3],
    "RND_MIN_INF": [-3, -2, -1, 0, 1, 2],
}


@pytest.mark.parametrize("round_mode", ROUND_MODES)
def test_ties(round_mode: RoundMode) -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    assert fixed_point(x, 1, 5, 0, round_mode).tolist() == TIES[round_mode]


@pytest.mark.parametrize("k", [0, 1])
@pytest.mark.parametrize("round_mode", ["RND", "RND_CONV", "RND_ZERO", "RND_INF", "RND_MIN_INF"])
def test_a_value_just_below_a_tie_goes_down_and_just_above_goes_up(round_mode: RoundMode, k: int) -> None:
    for tie in [n + 0.5 for n in (0, 1, 2, 5, 100, 1023, 2**20 - 1, 2**21 + 1)]:
        x = torch.nextafter(torch.tensor([tie, tie]), torch.tensor([0.0, math.inf]))
        assert fixed_point(x, k, 22, 0, round_mode).tolist() == [tie - 0.5, tie + 0.5]
        if k:
            assert fixed_point(-x, k, 22, 0, round_mode).tolist() == [-tie + 0.5, -tie - 0.5]


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_zeros_and_the_smallest_numbers(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    tiny = 2.0**-149
    below = -0.25 if round_mode == "TRN" else 0
    q = fixed_point(torch.tensor([0.0, -0.0, tiny, -tiny, 2.0**-126]), 1, 2, 2, round_mode, overflow_mode)
    assert q.tolist() == [0, 0, 0, below, 0]


@pytest.mark.parametrize("round_mode", ROUND_MODES)
@pytest.mark.parametrize("overflow_mode", ["SAT", "SAT_SYM"])
def test_huge_and_infinite_values_saturate(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    x = torch.tensor([1e30, 3.4e38, math.inf])
    for k, i, f in [(1, 3, 4), (0, 3, 4), (1, 10, 13), (1, -3, 10), (1, 8, -3)]:
        high = 2.0**i - 2.0**-f
        assert fixed_point(x, k, i, f, round_mode, overflow_mode).tolist() == [high] * 3
        assert fixed_point(-x, k, i, f, round_mode, overflow_mode).tolist() == [-k * (high if overflow_mode == "SAT_SYM" else 2.0**i)] * 3


@pytest.mark.parametrize("overflow_mode", ["WRAP", "WRAP_SM"])
def test_huge_values_wrap_exactly(overflow_mode: OverflowMode) -> None:
    x = [2.0**60 * 3, -(2.0**80), 2.0**23 + 1, -(2.0**24) + 3]
    expected = [overflowed(int(value) * 8, 1, 6, overflow_mode) / 8 for value in x]
    assert fixed_point(torch.tensor(x), 1, 2, 3, "RND", overflow_mode).tolist() == expected


def test_a_number_that_is_none_stays_none() -> None:
    x = torch.tensor([math.nan])
    assert all(fixed_point(x, 1, 2, 3, round_mode, overflow_mode).isnan() for round_mode, overflow_mode in MODES)


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
@pytest.mark.parametrize("shape", [(), (5, 1, 1), (5, 3, 7)])
def test_bits_as_tensors_give_what_numbers_give(round_mode: RoundMode, overflow_mode: OverflowMode, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 5, 3, 7, generator=generator) * 4
    k, i, f = (torch.randint(low, high, shape, generator=generator).float() for low, high in ((0, 2), (-2, 4), (-2, 5)))
    y = x.clone().requires_grad_()
    q = fixed_point(y, k, i, f, round_mode, overflow_mode)
    q.sum().backward()
    for index in np.ndindex(*shape):
        bits = [int(b[index]) for b in (k, i, f)]
        where = (slice(None), *(position if size > 1 else slice(None) for position, size in zip(index, shape, strict=True)))
        part = x[where].clone().requires_grad_()
        expected = fixed_point(part, *bits, round_mode, overflow_mode)
        expected.sum().backward()
        assert torch.equal(q[where], expected) and torch.equal(y.grad[where], part.grad)


def test_some_bits_may_be_numbers_and_others_tensors() -> None:
    x, f = torch.randn(6, 3), torch.tensor([1.0, 2.0, 3.0])
    expected = torch.stack([fixed_point(x[:, column], 1, 2, column + 1) for column in range(3)], 1)
    assert torch.equal(fixed_point(x, 1, 2, f), expected)
    assert torch.equal(fixed_point(x, torch.ones(()), torch.full((), 2.0), f), expected)


def test_modes_that_do_not_exist() -> None:
    with pytest.raises(ValueError, match="unknown overflow mode 'SATT': did you mean 'SAT'"):
        fixed_point(torch.zeros(1), 1, 2, 3, "RND", "SATT")
    for k, overflow_mode in [(0, "SAT"), (1, "SAT"), (1, "WRAP")]:
        with pytest.raises(ValueError, match="unknown rounding mode 'RNDD': did you mean 'RND'"):
            fixed_point(torch.zeros(1), k, 2, 3, "RNDD", overflow_mode)


def test_the_input_is_not_written_to() -> None:
    x = torch.randn(100)
    before = x.clone()
    for (round_mode, overflow_mode), k in itertools.product(MODES, (0, 1)):
        fixed_point(x, k, 2, 3, round_mode, overflow_mode)
    assert torch.equal(x, before)


some_bits = st.tuples(st.integers(0, 1), st.integers(-8, 12), st.integers(-8, 12))
numbers = st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), min_size=1, max_size=20)


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
def test_at_most_a_byte_of_each_value_is_kept_for_the_gradient(overflow_mode: OverflowMode) -> None:
    kept: list[torch.Tensor] = []

    def keep(saved: torch.Tensor) -> torch.Tensor:
        kept.append(saved)
        return saved

    x = torch.linspace(-20, 20, 1000, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
        q = fixed_point(x, 1, 3, 2, "RND", overflow_mode)
    assert sum(saved.numel() * saved.element_size() for saved in kept) == (len(x) if overflow_mode in ("SAT", "SAT_SYM") else 0)
    q.sum().backward()
    assert x.grad is not None
    assert 0 < x.grad.mean() <= 1


@settings(max_examples=200)
@given(numbers, some_bits, st.sampled_from(MODES))
@example([4096.0], (0, 12, 12), ("TRN", "WRAP_SM"))
@example([-4096.30322265625], (1, 12, 11), ("TRN", "WRAP_SM"))
def test_any_float32_equals_exact_arithmetic(values: list[float], bits: tuple[int, int, int], modes: tuple[RoundMode, OverflowMode]) -> None:
    k, i, f = bits
    steps = [Fraction(value) * Fraction(2) ** f for value in values]
    expected = [overflowed(rounded(n.numerator, n.denominator, modes[0]), k, k + i + f, modes[1]) * 2.0**-f for n in steps]
    assert fixed_point(torch.tensor(values), k, i, f, *modes).tolist() == expected


@settings(max_examples=100)
@given(numbers, some_bits, st.sampled_from(MODES))
def test_quantizing_twice_changes_nothing_and_errors_stay_below_a_step(
    values: list[float], bits: tuple[int, int, int], modes: tuple[RoundMode, OverflowMode]
) -> None:
    k, i, f = bits
    x = torch.tensor(values)
    q = fixed_point(x, k, i, f, *modes)
    assert torch.equal(fixed_point(q, k, i, f, *modes), q)
    low, high = (-k * 2.0**i, 2.0**i - 2.0**-f) if k + i + f > 0 else (0.0, 0.0)
    assert bool(((q >= low) & (q <= high)).all())
    assert torch.equal(q * 2.0**f, (q * 2.0**f).round())
    if modes[1] == "SAT":
        inside = (x >= low) & (x <= high) & (k + i + f > 0)
        error = (q.double() - x.double()).abs()[inside]
        assert bool((error <= 2.0**-f / 2 if modes[0].startswith("RND") else error < 2.0**-f).all())


# In the package a format without bits still has its lowest value: only formats with bits are compared. Its WRAP_SM follows the Vivado headers, where
# a carry into the deleted bits goes unseen (7.5 with 2 integer bits gives 0, not -1): the two agree on values that need no rounding.
# Its unsigned WRAP_SM gives negative values, also inside the range.
@pytest.mark.parametrize(("round_mode", "overflow_mode"), [modes for modes in MODES if modes[1] != "WRAP_SM"])
def test_agrees_with_the_quantizers_package(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    theirs = get_fixed_quantizer_np(round_mode, overflow_mode)
    for k, i, f in [bits for bits in FORMATS if sum(bits) > 0]:
        x = (reference(k, k + i + f, round_mode, overflow_mode)[0] * 2.0**-f / GRID).float()
        expected = theirs(x.numpy(), *(np.float32(bits) for bits in (k, i, f)))
        assert np.array_equal(fixed_point(x, k, i, f, round_mode, overflow_mode).numpy(), expected), (k, i, f)


@pytest.mark.parametrize("round_mode", ["RND", "RND_CONV"])
def test_agrees_with_the_quantizers_package_on_reflection(round_mode: RoundMode) -> None:
    theirs = get_fixed_quantizer_np(round_mode, "WRAP_SM")
    for _, i, f in [bits for bits in FORMATS if bits[0] and sum(bits) > 1]:
        x = torch.arange(-300.0, 300.0) * 2.0**-f
        expected = theirs(x.numpy(), *(np.float32(bits) for bits in (1, i, f)))
        assert np.array_equal(fixed_point(x, 1, i, f, round_mode, "WRAP_SM").numpy(), expected), (i, f)


SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1e-40, -1e-40, 3e38, -3e38]


@given(
    st.lists(st.floats(width=32) | st.integers(-300, 300).map(lambda n: n / 32) | st.sampled_from(SPECIAL), min_size=1, max_size=40),
    st.sampled_from(FORMATS),
    st.sampled_from([modes for modes in MODES if modes[1].startswith("SAT")]),
)
def test_numbers_and_tensors_agree_on_any_value_and_its_gradient(
    values: list[float], bits: tuple[int, int, int], modes: tuple[RoundMode, OverflowMode]
) -> None:
    x = torch.tensor(values, requires_grad=True)
    results = [fixed_point(x, *given, *modes) for given in (bits, [torch.tensor(float(bit)) for bit in bits])]
    slopes = [torch.autograd.grad(q.sum(), x)[0] for q in results]
    torch.testing.assert_close(*results, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(*slopes, rtol=0, atol=0, equal_nan=True)
    low, high = -bits[0] * (2.0 ** bits[1] - (modes[1] == "SAT_SYM") * 2.0 ** -bits[2]), 2.0 ** bits[1] - 2.0 ** -bits[2]
    expected = [float(sum(bits) > 0 and low <= value <= high) for value in x.tolist() if not math.isnan(value)]
    assert slopes[0][~x.isnan()].tolist() == expected
    assert all(
        math.isnan(q) if math.isnan(value) else q == high for value, q in zip(values, results[0].tolist(), strict=True) if not value < high
    ) or (sum(bits) <= 0)


def test_the_gradient_of_a_gradient_reaches_what_it_came_from() -> None:
    x, w = torch.tensor([-3.0, 0.3, 9.0], requires_grad=True), torch.tensor([1.0, 2.0, 4.0], requires_grad=True)
    (slope,) = torch.autograd.grad((fixed_point(x, 0, 1, 4) * w).sum(), x, create_graph=True)
    assert slope.tolist() == [0.0, 2.0, 0.0]
    slope.sum().backward()
    assert w.grad is not None and w.grad.tolist() == [0.0, 1.0, 0.0]


def test_a_derivative_in_forward_mode_is_refused() -> None:
    x = torch.tensor([0.3])
    with pytest.raises(RuntimeError, match="jvp"):
        torch.func.jvp(lambda values: fixed_point(values, 1, 2, 3), (x,), (x,))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_half_precision_gives_the_values_of_float32(dtype: torch.dtype, round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    x = torch.tensor([200.0, -200.0, 0.3, -1.0, 60000.0], dtype=dtype, requires_grad=True)
    q = fixed_point(x, 1, 8, 8, round_mode, overflow_mode)
    assert torch.equal(q, fixed_point(x.float(), 1, 8, 8, round_mode, overflow_mode).to(dtype))
    assert q[:2].tolist() == [200.0, -200.0]
    q.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1.0, 1.0, 1.0, 1.0, float(overflow_mode not in ("SAT", "SAT_SYM"))]


def test_a_traced_quantizer_quantizes_other_values_too() -> None:
    x = torch.tensor([0.3, 0.7])
    traced = torch.jit.trace(lambda values: fixed_point(values, 0, 1, 2), x)
    assert traced(torch.tensor([1.2, -1.0])).tolist() == [1.25, 0.0]

"""Fixed-point values against Python's whole numbers: wide formats, ties, bits as tensors, doubles, views, vmap and compiled graphs."""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pquant.quantization import fixed_point
from pquant.quantization.fixed_point import OverflowMode, RoundMode

ROUND_MODES, OVERFLOW_MODES = get_args(RoundMode), get_args(OverflowMode)
MODES = list(itertools.product(ROUND_MODES, OVERFLOW_MODES))
Format = tuple[int, int, int]
HALF = Fraction(1, 2)
NEAREST: dict[str, Callable[[int, bool], bool]] = {  # whether a tie goes up, by the whole number below and the value's sign
    "RND": lambda floor, negative: True,
    "RND_CONV": lambda floor, negative: floor % 2 == 1,
    "RND_ZERO": lambda floor, negative: negative,
    "RND_INF": lambda floor, negative: not negative,
    "RND_MIN_INF": lambda floor, negative: False,
}


def rounded(v: Fraction, mode: str) -> int:
    """Return ``v`` as a whole number."""
    floor = math.floor(v)
    if mode == "TRN":
        return floor
    if mode == "TRN_ZERO":
        return math.trunc(v)
    return floor + (v - floor > HALF or v - floor == HALF and NEAREST[mode](floor, v < 0))


def exact(value: float, bits: Format, round_mode: str, overflow_mode: str) -> float:
    """Return what a word of k + i + f bits holds of ``value``."""
    k, i, f = bits
    if k + i + f <= 0:
        return 0.0
    n, count = rounded(Fraction(value) * Fraction(2) ** f, round_mode), 2 ** (i + f)
    low, high = -k * count, count - 1
    if overflow_mode == "SAT":
        n = min(max(n, low), high)
    elif overflow_mode == "SAT_SYM":
        n = min(max(n, -k * high), high)
    elif overflow_mode == "WRAP":
        n = (n - low) % (high - low + 1) + low
    else:  # every second copy of the range is passed through backwards
        turn, place = divmod(n - low, high - low + 1)
        n = high - place if turn % 2 else low + place
    return float(n * Fraction(2) ** -f)


def passes(value: float, bits: Format, overflow_mode: str) -> float:
    """Return the straight-through gradient."""
    k, i, f = bits
    if k + i + f <= 0:
        return 0.0
    if overflow_mode in ("WRAP", "WRAP_SM"):
        return 1.0
    high = Fraction(2) ** i - Fraction(2) ** -f
    low = -k * (high if overflow_mode == "SAT_SYM" else Fraction(2) ** i)
    return float(low <= Fraction(value) <= high)


def as_tensors(bits: Format, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    k, i, f = (torch.tensor(float(b), dtype=dtype) for b in bits)
    return k, i, f


def check(x: Tensor, bits: Format, modes: tuple[RoundMode, OverflowMode]) -> None:
    """Compare values and gradients with bits given as numbers and as tensors."""
    expected = [exact(value, bits, *modes) for value in x.tolist()]
    slopes = [3 * passes(value, bits, modes[1]) for value in x.tolist()]
    for given_bits in (bits, as_tensors(bits, x.dtype)):
        leaf = x.clone().requires_grad_()
        q = fixed_point(leaf, *given_bits, *modes)
        assert q.dtype == x.dtype and q.tolist() == expected, (bits, modes)
        q.backward(torch.full_like(x, 3.0))
        assert leaf.grad is not None and leaf.grad.tolist() == slopes, (bits, modes)
        assert fixed_point(x, *given_bits, *modes).tolist() == expected, "the same without a gradient"


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_ties_and_their_neighbours_in_every_place_of_the_point(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    halves = torch.arange(-13, 14) / 2
    around = torch.cat([halves, torch.nextafter(halves, torch.tensor(math.inf)), torch.nextafter(halves, torch.tensor(-math.inf))])
    around = around[(around == 0) | (around.abs() > 1e-30)]  # subnormal numbers may count as 0
    for bits in [(1, 2, 0), (0, 2, 0), (1, -3, 6), (0, -3, 5), (1, 6, -3), (0, 5, -3), (1, 12, -10), (1, -10, 12), (1, 0, 0), (1, -1, 1)]:
        check(around * 2.0 ** -bits[2], bits, (round_mode, overflow_mode))


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_the_number_just_below_a_half_is_none(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    x = torch.tensor([0.49999997, -0.49999997, 0.49999997 / 8, -0.49999997 / 8])
    assert x[0].item() == 0.5 - 2.0**-25, "the neighbour of a half in float32"
    down = round_mode == "TRN"
    for bits in [(1, 5, 0), as_tensors((1, 5, 0))]:
        assert fixed_point(x, *bits, round_mode, overflow_mode).tolist() == [0, -down, 0, -down]
    for bits in [(1, 5, 3), as_tensors((1, 5, 3))]:
        assert fixed_point(x[2:], *bits, round_mode, overflow_mode).tolist() == [0, -down / 8]


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_words_of_twenty_four_bits_are_exact_in_float32(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    for bits in [(1, 3, 20), (0, 4, 20), (1, 23, 0), (0, 24, 0), (1, -4, 27), (0, 30, -6), (1, 0, 23)]:
        k, i, f = bits
        count, step = 2 ** (i + f), 2.0**-f
        ends = [n * step for n in (count, count - 1, count - 2, -count, 1 - count, 2 - count, 0, 1, -1, count // 2 + 1, -count // 3)]
        beyond = [float(torch.nextafter(torch.tensor(end), torch.tensor(to))) for end in ends[:6] for to in (math.inf, -math.inf)]
        some = ((torch.rand(20, generator=torch.Generator().manual_seed(f)) - 0.5) * 4 * 2.0**i).tolist()
        check(torch.tensor(ends + beyond + some), bits, (round_mode, overflow_mode))


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_words_of_fifty_bits_are_exact_in_float64(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    for bits in [(1, 3, 32), (0, 20, 28), (1, 17, 32), (1, -8, 32), (0, 32, -8), (1, 32, 8)]:
        k, i, f = bits
        count, step = 2 ** (i + f), 2.0**-f
        generator = torch.Generator().manual_seed(i)
        ends = torch.tensor([count - 1, -count, 1 - count, 1, -1, count // 3], dtype=torch.float64) * step
        some = (torch.rand(20, generator=generator, dtype=torch.float64) - 0.5) * 3 * 2.0**i
        ties = (torch.randint(-1000, 1000, (10,), generator=generator).double() + 0.5) * step
        check(torch.cat([ends, some, ties]), bits, (round_mode, overflow_mode))


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
def test_float32_bits_are_enough_for_doubles(overflow_mode: OverflowMode) -> None:
    x = torch.tensor([7.3, -7.3, 8.0, -8.0, -9.7, 1 / 3], dtype=torch.float64)
    q = fixed_point(x, *as_tensors((1, 3, 32)), "RND", overflow_mode)
    assert q.tolist() == [exact(value, (1, 3, 32), "RND", overflow_mode) for value in x.tolist()]


formats = st.tuples(st.integers(0, 1), st.integers(-8, 12), st.integers(-8, 12))
values = st.lists(st.floats(-(2.0**13), 2.0**13, width=32, allow_subnormal=False), min_size=4, max_size=4)


@settings(max_examples=150)
@given(st.lists(formats, min_size=3, max_size=3), st.lists(values, min_size=3, max_size=3), st.sampled_from(MODES), st.booleans())
def test_bits_that_differ_by_channel_equal_exact_arithmetic(
    bits: list[Format], rows: list[list[float]], modes: tuple[RoundMode, OverflowMode], double: bool
) -> None:
    x = torch.tensor(rows, dtype=torch.float64 if double else torch.float32, requires_grad=True)
    k, i, f = torch.tensor(bits, dtype=torch.float32).T.unsqueeze(-1)
    q = fixed_point(x, k, i, f, *modes)
    q.sum().backward()
    assert q.dtype == x.dtype
    assert q.tolist() == [[exact(value, one, *modes) for value in row] for one, row in zip(bits, rows, strict=True)]
    assert x.grad is not None and x.grad.tolist() == [[passes(value, one, modes[1]) for value in row] for one, row in zip(bits, rows, strict=True)]


@settings(max_examples=100)
@given(st.lists(st.tuples(formats, st.floats(-4100, 4100, width=32, allow_subnormal=False)), min_size=1, max_size=8), st.sampled_from(MODES))
def test_bits_of_each_value_equal_exact_arithmetic(pairs: list[tuple[Format, float]], modes: tuple[RoundMode, OverflowMode]) -> None:
    bits, x = torch.tensor([one for one, _ in pairs], dtype=torch.float32), torch.tensor([value for _, value in pairs])
    assert fixed_point(x, *bits.T, *modes).tolist() == [exact(value, one, *modes) for one, value in pairs]


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
@pytest.mark.parametrize("bits", [(0, 0, 0), (1, -1, 0), (0, -3, 2), (1, 2, -4), (1, -8, 3)])
def test_a_word_without_bits_is_zero_and_passes_no_gradient(bits: Format, round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    check(torch.tensor([-9.0, -0.5, 0.0, 0.3, 1e9]), bits, (round_mode, overflow_mode))
    assert not fixed_point(torch.tensor([math.inf, -math.inf]), *bits, round_mode, "SAT").any()


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
@pytest.mark.parametrize("double", [False, True])
def test_the_gradient_ends_at_the_bounds_themselves(double: bool, overflow_mode: OverflowMode) -> None:
    dtype = torch.float64 if double else torch.float32
    for bits in [(1, 2, 3), (0, 2, 3), (1, -3, 5), (1, 4, -2), (1, 3, 20)]:
        k, i, f = bits
        high = 2.0**i - 2.0**-f
        for bound in (high, -k * (high if overflow_mode == "SAT_SYM" else 2.0**i)):
            middle = torch.tensor([bound], dtype=dtype)
            ends = [torch.nextafter(middle, torch.tensor([to], dtype=dtype)) for to in (-math.inf, math.inf)]
            x = torch.cat([ends[0], middle, ends[1]])
            x = torch.where((x.abs() < 1e-30), torch.sign(x) * 1e-30, x)
            check(x, bits, ("RND", overflow_mode))


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "a transpose": lambda x: x.transpose(0, 2),
    "every second value": lambda x: x[..., ::2],
    "an expanded row": lambda x: x[:1].expand(5, *x.shape[1:]),
    "channels last": lambda x: x[None].contiguous(memory_format=torch.channels_last),
    "nothing": lambda x: x[:0],
    "one value": lambda x: x[0, 0, 0],
}


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
@pytest.mark.parametrize("view", VIEWS)
def test_views_are_quantized_as_their_copies(view: str, overflow_mode: OverflowMode) -> None:
    for as_numbers in (True, False):
        bits = (1, 1, 3) if as_numbers else as_tensors((1, 1, 3))
        base = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0)) * 2
        before, leaf = base.clone(), base.clone().requires_grad_()
        x = VIEWS[view](base)
        expected = torch.tensor([exact(value, (1, 1, 3), "RND", overflow_mode) for value in x.flatten().tolist()]).view(x.shape)
        assert torch.equal(fixed_point(x, *bits, "RND", overflow_mode), expected) and torch.equal(base, before)
        q = fixed_point(VIEWS[view](leaf), *bits, "RND", overflow_mode)
        assert torch.equal(q, expected) and torch.equal(leaf, before)
        slope = torch.tensor([passes(value, (1, 1, 3), overflow_mode) for value in x.flatten().tolist()]).view(x.shape)
        (grad,) = torch.autograd.grad(q.sum(), leaf)
        (straight,) = torch.autograd.grad((VIEWS[view](leaf) * slope).sum(), leaf)
        assert torch.equal(grad, straight)


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
def test_other_uses_of_input_and_output_keep_their_gradients(overflow_mode: OverflowMode) -> None:
    leaf = torch.tensor([0.3, -0.7, 5.0], requires_grad=True)
    x = leaf * 1
    q = fixed_point(x, 1, 0, 3, "RND", overflow_mode)
    (x * q + q.square()).sum().backward()  # d = q + x q' + 2 q q'
    expected = []
    for value in leaf.tolist():
        one, slope = exact(value, (1, 0, 3), "RND", overflow_mode), passes(value, (1, 0, 3), overflow_mode)
        expected.append(one + value * slope + 2 * one * slope)
    assert leaf.grad is not None and leaf.grad.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
def test_the_values_may_be_written_to_and_the_input_too(overflow_mode: OverflowMode) -> None:
    x = torch.tensor([0.3, -0.7, 5.0])
    q = fixed_point(x, 1, 0, 3, "RND", overflow_mode)
    kept = q.clone()
    x.zero_()
    assert torch.equal(q, kept), "they do not lie in the input's memory"
    leaf = torch.tensor([0.3, -0.7, 0.5], requires_grad=True)
    fixed_point(leaf * 1, 1, 0, 3, "RND", overflow_mode).mul_(2).sum().backward()
    assert leaf.grad is not None and leaf.grad.tolist() == [2, 2, 2]


def batch() -> Tensor:
    return torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1)) * 3


@pytest.mark.parametrize(("round_mode", "overflow_mode"), MODES)
def test_in_vmap_values_and_gradients_are_those_of_one_after_another(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    x, g = batch(), torch.linspace(-1, 2, 60).view(3, 4, 5)
    channels = torch.tensor([[1.0], [0], [1], [1]]), torch.tensor([[1.0], [2], [-1], [0]]), torch.tensor([[2.0], [0], [4], [-1]])
    for bits in [(1, 1, 3), as_tensors((1, 1, 3)), channels]:

        def one(x: Tensor, g: Tensor, bits: tuple = bits) -> Tensor:
            return (fixed_point(x, *bits, round_mode, overflow_mode) * g).sum()

        def value(x: Tensor, bits: tuple = bits) -> Tensor:
            return fixed_point(x, *bits, round_mode, overflow_mode)

        assert torch.equal(torch.vmap(value)(x), torch.stack([value(part) for part in x]))
        if bits is not channels:
            assert torch.equal(torch.vmap(value, in_dims=2, out_dims=2)(x), value(x))
        slopes = torch.vmap(torch.func.grad(one))(x, g)
        for part, weight, slope in zip(x, g, slopes, strict=True):
            leaf = part.clone().requires_grad_()
            one(leaf, weight).backward()
            assert leaf.grad is not None and torch.equal(slope, leaf.grad)


@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
def test_in_vmap_each_may_have_bits_of_its_own(overflow_mode: OverflowMode) -> None:
    x, bits = batch(), [(1, 1, 3), (0, 2, 1), (1, -1, 0)]
    k, i, f = torch.tensor(bits, dtype=torch.float32).T
    q = torch.vmap(lambda x, k, i, f: fixed_point(x, k, i, f, "RND", overflow_mode))(x, k, i, f)
    assert torch.equal(q, torch.stack([fixed_point(part, *one, "RND", overflow_mode) for part, one in zip(x, bits, strict=True)]))
    shared = torch.vmap(lambda i: fixed_point(x[0], 1, i, 2, "RND", overflow_mode))(i)
    assert torch.equal(shared, torch.stack([fixed_point(x[0], 1, int(one), 2, "RND", overflow_mode) for one in i]))


@pytest.mark.slow
@pytest.mark.parametrize("overflow_mode", OVERFLOW_MODES)
@pytest.mark.parametrize("round_mode", ROUND_MODES)
def test_compiled_values_and_gradients_are_exact(round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    halves = torch.arange(-40, 40) / 16
    x = torch.cat([halves, torch.tensor([0.49999997, -0.49999997, 7.9, -8.1, 1e6, -1e6]), batch().flatten()])
    rows = x.expand(3, -1)
    bits = [(1, 1, 3), (0, 3, 1), (1, -1, 0)]
    k, i, f = torch.tensor(bits, dtype=torch.float32).T.unsqueeze(-1)

    def both(x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return fixed_point(x, 1, 1, 3, round_mode, overflow_mode), fixed_point(rows, k, i, f, round_mode, overflow_mode)

    torch._dynamo.reset()
    leaves = x.clone().requires_grad_(), rows.clone().requires_grad_()
    results = torch.compile(both, fullgraph=True)(*leaves)
    (results[0].sum() + results[1].sum()).backward()
    for q, leaf, each in zip(results, leaves, ([bits[0]], bits), strict=True):
        for values, slopes, one in zip(q.view(len(each), -1), leaf.grad.view(len(each), -1), each, strict=True):
            assert values.tolist() == [exact(value, one, round_mode, overflow_mode) for value in x.tolist()], one
            assert slopes.tolist() == [passes(value, one, overflow_mode) for value in x.tolist()], one

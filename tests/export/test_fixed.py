import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pquant.errors import ConfigError
from pquant.export.fixed import Fixed, Real
from pquant.export.formats import Constants, Format
from pquant.quantization.fixed_point import ROUND, SATURATING, WRAPPING, fixed_point
from pquant.quantization.quantizer import FoldedQuantizer, NoQuantizer

BITS = st.tuples(st.integers(0, 1), st.integers(-2, 4), st.integers(-2, 4))


def form(k: int, i: int, f: int, rounding: str = "RND", overflow: str = "SAT") -> Format:
    return Format(np.array(k), np.array(i), np.array(f), rounding, overflow)


@given(BITS, st.sampled_from(sorted(ROUND)), st.sampled_from(SATURATING + WRAPPING))
def test_quantize_equals_torch_in_every_mode(bits: tuple[int, int, int], rounding: str, overflow: str) -> None:
    x = np.arange(-400, 401) / 16
    expected = fixed_point(torch.from_numpy(x).float(), *bits, rounding, overflow).double().numpy()  # type: ignore[arg-type]
    np.testing.assert_array_equal(form(*bits, rounding, overflow).quantize(x), expected)


@given(BITS, st.lists(st.integers(-1000, 1000), min_size=1, max_size=8))
def test_quantizing_integers_equals_quantizing_their_values(bits: tuple[int, int, int], n: list[int]) -> None:
    ends = np.full(len(n), -1000), np.full(len(n), 1000)
    given_values = Fixed(np.array([n]), 5, *ends)
    quantized = given_values.quantize(form(*bits))
    np.testing.assert_array_equal(quantized.floats(), form(*bits).quantize(given_values.floats()))
    assert (quantized.low <= quantized.n).all() and (quantized.n <= quantized.high).all()


def test_constants_are_the_least_integers() -> None:
    constants = Constants.from_floats(np.array([0.75, -2.0, 0.0]))
    assert constants.n.tolist() == [3, -8, 0] and constants.f == 2
    assert Constants.from_floats(np.zeros(2)).f == 0


def test_a_weight_off_its_grid_is_named() -> None:
    quantizer = FoldedQuantizer(*(torch.tensor(float(bits)) for bits in (1, 0, 2)))
    with pytest.raises(ConfigError, match=r"weight of 'a'\[1\] is 0.3"):
        Constants.of("weight of 'a'", torch.tensor([0.25, 0.3]), quantizer)
    with pytest.raises(ConfigError, match=r"weight of 'a'\[0\] is 1,"):
        Constants.of("weight of 'a'", torch.tensor([1.0, 0.5]), quantizer)
    with pytest.raises(ConfigError, match="not quantized"):
        Constants.of("weight of 'a'", torch.tensor([1.0]), NoQuantizer())


@given(st.lists(st.integers(-8, 7), min_size=6, max_size=6), st.lists(st.integers(-8, 7), min_size=6, max_size=6))
def test_bounds_and_peak_hold_for_every_input(weight: list[int], x: list[int]) -> None:
    values = Fixed(np.array(x).reshape(1, 1, 6), 0, np.full((1, 6), -8), np.full((1, 6), 7))
    y = values.dot(Constants(np.array(weight).reshape(1, 6, 1), 0)).plus(Constants(np.array([3]), 1))
    assert y.n.item() == 2 * int(np.dot(weight, x)) + 3 and y.f == 1
    assert y.low.item() <= y.n.item() <= y.high.item()
    partial = np.cumsum(np.array(weight) * np.array(x))
    assert np.abs(2 * partial).max() <= y.peak


def test_sums_beyond_float64_are_refused() -> None:
    values = Fixed(np.zeros((1, 1, 1), np.int64), 0, np.array([[0]]), np.array([[2**40]]))
    with pytest.raises(ConfigError, match="53 bits"):
        values.dot(Constants(np.array([[[2**20]]]), 0))


def test_sums_align_the_binary_points() -> None:
    a = Fixed(np.array([[3]]), 1, np.array([-4]), np.array([3]))
    b = Fixed(np.array([[1]]), 3, np.array([0]), np.array([1]))
    assert a.add(b).floats().item() == 1.625 and a.add(b, -1).floats().item() == 1.375
    assert (a.add(b, -1).low.item(), a.add(b, -1).high.item(), a.add(b).f) == (-17, 12, 3)


def test_gather_puts_zeros_where_nothing_is() -> None:
    value = Real(np.array([[1.5, 2.5]]))
    assert value.gather(np.array([[1, -1], [0, 1]])).x.tolist() == [[[2.5, 0.0], [1.5, 2.5]]]


def test_relu_clip_times_and_shift() -> None:
    x = Fixed(np.array([[-6, 5]]), 1, np.array([-6, -6]), np.array([5, 5]))
    assert x.relu().floats().tolist() == [[0, 2.5]] and x.relu().low.tolist() == [0, 0]
    assert x.clip(1).floats().tolist() == [[-1, 1]]
    assert x.shift(2).floats().tolist() == [[-12, 10]]
    assert x.times(Constants(np.array([-1, 3]), 0)).high.tolist() == [6, 15]

"""Quantizers: what shares a bit width, integer bits chosen from values, and formats that are fixed for good."""

import copy
import itertools
from typing import get_args

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.layers import PQDense
from pquant.quantization import FixedPointQuantizer, FoldedQuantizer, NoQuantizer, Quantization, TensorFormat, fixed_point
from pquant.quantization.fixed_point import OverflowMode, RoundMode, rounded
from pquant.quantization.quantizer import FLOAT_BITS, MantissaQuantizer, bits_shape, integer_bits, value_range


@pytest.mark.parametrize(
    ("granularity", "shape", "expected"),
    [
        ("per_tensor", (4, 3, 2), ()),
        ("per_channel", (4, 3, 2), (4, 1, 1)),
        ("per_channel", (4,), (4,)),
        ("per_channel", (), ()),
        ("per_weight", (4, 3, 2), (4, 3, 2)),
        ("per_weight", (), ()),
    ],
)
def test_what_shares_a_bit_width(granularity: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    assert bits_shape(granularity, shape) == expected


def test_ranges_are_taken_over_all_that_shares_a_bit_width() -> None:
    x = torch.arange(-12.0, 12.0).view(2, 3, 4)
    one = torch.ones(())
    assert [value.tolist() for value in value_range(x, torch.Size(()), one)] == [-12, 11]
    assert [value.flatten().tolist() for value in value_range(x, torch.Size((3, 1)), one)] == [[-12, -8, -4], [3, 7, 11]]
    assert [value.shape for value in value_range(x, torch.Size((3, 4)), one)] == [(3, 4)] * 2
    assert [value.tolist() for value in value_range(x, torch.Size(()), torch.zeros(()))] == [0, 11]
    assert [value.tolist() for value in value_range(x.abs() + 1, torch.Size(()), one)] == [0, 13]
    assert [value.tolist() for value in value_range(torch.tensor(-3.0), torch.Size(()), one)] == [-3, 0]


@settings(max_examples=200)
@given(
    st.floats(-200, 0, width=32),
    st.floats(0, 200, width=32),
    st.integers(-4, 8),
    st.sampled_from(get_args(RoundMode)),
    st.sampled_from(["SAT", "SAT_SYM", "WRAP"]),
)
def test_integer_bits_are_the_fewest_that_hold_a_range(low: float, high: float, f: int, round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    ends = torch.tensor([low, high])
    i = int(integer_bits(*ends, torch.tensor(float(f)), round_mode, overflow_mode))
    wanted = rounded(ends, f, round_mode)

    def holds(bits: int) -> bool:
        limits = torch.tensor([-(2.0**bits) + (2.0**-f if overflow_mode == "SAT_SYM" else 0), 2.0**bits - 2.0**-f])
        return bool(wanted[0] >= limits[0]) and bool(wanted[1] <= limits[1])

    if not ends.any():
        assert i == 0
    else:
        assert holds(i) and (not holds(i - 1) or i <= -f)
    if i + f >= 0 and ends.any():
        assert torch.equal(fixed_point(ends, 1, i, f, round_mode, overflow_mode), wanted)


@pytest.mark.parametrize(("granularity", "axes"), [("per_tensor", 0), ("per_channel", 1), ("per_weight", 3)])
def test_a_quantizer_gives_each_group_its_own_integer_bits(granularity: str, axes: int) -> None:
    x = torch.randn(16, 4, 3, 2) * torch.tensor([0.1, 1.0, 10.0, 100.0]).view(4, 1, 1)
    quantizer = FixedPointQuantizer(TensorFormat(k=True, i="auto", f=3, granularity=granularity), bits_shape(granularity, (4, 3, 2)))
    quantizer.observe(x)
    assert quantizer.i.shape == bits_shape(granularity, (4, 3, 2))
    for index in itertools.product(*(range(size) for size in (4, 3, 2)[:axes])):
        part = x[:, *index]
        alone = FixedPointQuantizer(TensorFormat(k=True, i="auto", f=3))
        alone.observe(part)
        assert torch.equal(alone(part), quantizer(x)[:, *index])
        assert torch.equal(alone(part), rounded(part, 3, "RND")), "nothing is clipped"


@pytest.mark.parametrize("shape", [(), (3, 1), (3, 4)])
def test_the_range_seen_only_grows(shape: tuple[int, ...]) -> None:
    quantizer = FixedPointQuantizer(TensorFormat(k=True, i="auto", f=2), shape)
    batches = [torch.full((2, 3, 4), value) for value in (0.5, 3.75, -0.1, -4.2, 1.0)]
    bits = []
    for batch in batches:
        quantizer.observe(batch)
        bits.append(int(quantizer.i.max()))
    assert bits == [0, 2, 2, 3, 3]
    together = FixedPointQuantizer(TensorFormat(k=True, i="auto", f=2), shape)
    together.observe(torch.cat(batches))
    assert torch.equal(together.i, quantizer.i)


def test_values_that_are_not_kept_need_no_bits() -> None:
    quantizer = FixedPointQuantizer(TensorFormat(k=False, i="auto", f=2))
    quantizer.observe(torch.tensor([-100.0, 1.0]))
    assert quantizer.extra_repr() == "k=0 i=1 f=2, RND, SAT"


def test_an_uncalibrated_quantizer_says_what_to_do() -> None:
    for k in (True, False):
        quantizer = FixedPointQuantizer(TensorFormat(k=k, i="auto", f=2))
        with pytest.raises(RuntimeError, match="give compress an example_input, or call pquant.calibrate"):
            quantizer(torch.ones(2))
        quantizer.observing = True
        x = torch.randn(5)
        assert torch.equal(quantizer(x), x if k else x.clamp(min=0)), "a ReLU stays one while it is observed"
        quantizer.observing = False
        assert quantizer.calibrated


def test_calibration_goes_through_the_whole_model_and_leaves_modes_as_they_are() -> None:
    auto = Quantization(default_data_keep_negatives=True, default_data_integer_bits="auto", default_data_fractional_bits=4, quantize_output=False)
    auto = Quantization(
        **(vars(auto) | {"default_weight_keep_negatives": True, "default_weight_integer_bits": "auto", "default_weight_fractional_bits": 6})
    )
    model = nn.Sequential(PQDense(4, 3, quantization=auto), nn.Dropout(0.5), PQDense(3, 2, quantization=auto))
    model[1].eval()
    x = torch.randn(8, 4) * 9
    pquant.calibrate(model, [x[:4], (x[4:],)])
    assert [module.training for module in model] == [True, False, True]
    for layer, seen in ((model[0], x), (model[2], None)):
        for quantizer, values in ((layer.input_quantizer, seen), (layer.weight_quantizer, layer.weight), (layer.bias_quantizer, layer.bias)):
            if values is not None:
                assert torch.equal(quantizer(values), rounded(values, int(quantizer.f), "RND"))
    widest = model[0].input_quantizer.i.clone()
    pquant.calibrate(model, [x / 100])
    assert torch.equal(model[0].input_quantizer.i, widest)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_calibrated_bits_survive_a_state_dict(shape: tuple[int, ...]) -> None:
    settings = TensorFormat(k=True, i="auto", f=3)
    quantizer, fresh = FixedPointQuantizer(settings, shape), FixedPointQuantizer(settings, shape)
    quantizer.observe(torch.randn(32, 3) * 10)
    fresh.load_state_dict(quantizer.state_dict())
    x = torch.randn(32, 3) * 20
    assert fresh.calibrated and torch.equal(fresh(x), quantizer(x))
    fresh.observe(x / 1000)
    assert torch.equal(fresh.i, quantizer.i)
    fresh.observe(x * 1000)
    assert bool((fresh.i > quantizer.i).all())
    assert torch.equal(copy.deepcopy(fresh)(x), fresh(x))
    quantizer.load_state_dict(FixedPointQuantizer(settings, shape).state_dict())
    assert not quantizer.calibrated, "the bits in force are those of the state"


def test_loading_changes_the_format_in_force() -> None:
    one, other = (FixedPointQuantizer(TensorFormat(k=True, i=i, f=2)) for i in (1, 4))
    one.load_state_dict(other.state_dict())
    assert one(torch.tensor(9.0)) == 9


def test_a_quantizer_in_double_precision() -> None:
    quantizer = FixedPointQuantizer(TensorFormat(k=True, i="auto", f=30)).double()
    x = torch.tensor([1 + 2.0**-30, 2.5], dtype=torch.float64)
    quantizer.observe(x)
    assert torch.equal(quantizer(x), x) and quantizer(x).dtype == torch.float64


def test_widths() -> None:
    quantizer = FixedPointQuantizer.of((torch.ones(3), torch.tensor([2.0, 0.0, -4.0]), torch.tensor([3.0, 1.0, 1.0])), "TRN", "SAT_SYM")
    assert quantizer.width().tolist() == [6, 2, 0] and quantizer.bits().tolist() == [6, 2, 0]
    assert quantizer.mean_width() == pytest.approx(8 / 3) and not quantizer.is_float
    x = torch.tensor([-9.9, -9.9, -9.9])
    assert quantizer(x).tolist() == [-3.875, -0.5, 0]
    assert quantizer.finalized() is quantizer


def test_float_values() -> None:
    quantizer, x = NoQuantizer(), torch.randn(3)
    assert quantizer(x) is x and quantizer.format() is None and quantizer.is_float
    assert quantizer.width() == FLOAT_BITS and quantizer.mean_width() is None and quantizer.folded() is quantizer


def test_a_baked_format_keeps_the_bits_and_changes_nothing() -> None:
    source = FixedPointQuantizer(TensorFormat(k=True, i=2, f=3))
    baked = source.folded()
    assert isinstance(baked, FoldedQuantizer) and baked.width() == 6 and not baked.is_float
    x = torch.randn(5, requires_grad=True)
    assert baked(x) is x
    source.f.fill_(7)
    assert baked.format()[2] == 3, "a copy"
    assert sorted(baked.state_dict()) == ["f", "i", "k"] and not list(baked.parameters())
    assert isinstance(baked.folded(), FoldedQuantizer)


def fixed(k: int, i: int, f: int, mode: OverflowMode = "SAT") -> FixedPointQuantizer:
    return FixedPointQuantizer(TensorFormat(k=bool(k), i=i, f=f, overflow_mode=mode))


@pytest.mark.parametrize("modes", [*itertools.product(get_args(OverflowMode), repeat=2)])
def test_a_quantizer_that_keeps_another_changes_none_of_its_values(modes: tuple[OverflowMode, OverflowMode]) -> None:
    x = torch.linspace(-20, 20, 999)
    kept = 0
    for mine, theirs in itertools.product(itertools.product((0, 1), (-1, 0, 2), (-1, 0, 3)), repeat=2):
        quantizer, source = fixed(*mine, modes[0]), fixed(*theirs, modes[1])
        if quantizer.is_redundant_after(source):
            kept += 1
            assert torch.equal(quantizer(source(x)), source(x)), (mine, theirs)
    assert kept > 20
    assert not fixed(1, 2, 3).is_redundant_after(NoQuantizer())
    auto = FixedPointQuantizer(TensorFormat(k=True, i="auto", f=3))
    assert not auto.is_redundant_after(fixed(1, 2, 3)) and not fixed(1, 2, 3).is_redundant_after(auto)


SATURATING_MODES = st.tuples(st.sampled_from(get_args(RoundMode)), st.sampled_from(["SAT", "SAT_SYM"]))


@given(st.sampled_from([(5,), (3, 1), (1, 1), (2, 3)]), SATURATING_MODES, st.integers(0, 2**32 - 1))
def test_formats_worked_out_once_give_the_values_of_formats_beside_a_gradient(
    shape: tuple[int, ...], modes: tuple[RoundMode, OverflowMode], seed: int
) -> None:
    draw = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, shape, generator=draw), *(torch.randint(-3, 5, shape, generator=draw) for _ in range(2))
    quantizer = FixedPointQuantizer.of(bits, *modes)  # type: ignore[arg-type]
    x = torch.randint(-300, 300, (4, *(max(size, 5) if size == 1 else size for size in shape)), generator=draw) / 32
    x.view(-1)[:5] = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])
    expected = quantizer(x.clone().requires_grad_()).detach()
    for _ in range(2):
        assert torch.equal(quantizer(x).view(torch.int32), expected.view(torch.int32))
    double = copy.deepcopy(quantizer).double()(x.double())
    torch.testing.assert_close(double.float(), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("modes", [("RND", "SAT"), ("RND_CONV", "SAT_SYM"), ("TRN", "SAT")])
def test_formats_by_channel_are_the_same_in_a_compiled_model(modes: tuple[RoundMode, OverflowMode]) -> None:
    bits = torch.tensor([1.0, 0, 1]), torch.tensor([2.0, -1, 0]), torch.tensor([3.0, 0, -1])
    quantizer = FixedPointQuantizer.of(bits, *modes)
    x = torch.randn(64, 3).mul_(5)
    with torch.no_grad():
        assert torch.equal(torch.compile(quantizer)(x), quantizer(x))


def test_formats_by_channel_may_change_after_they_were_used() -> None:
    x = torch.full((2, 3), 0.3)
    quantizer = FixedPointQuantizer.of((torch.ones(3), torch.zeros(3), torch.full((3,), 1.0)), "RND", "SAT")
    assert quantizer(x).unique().tolist() == [0.5]
    quantizer.fix(1, 0, 2)
    assert quantizer(x).unique().tolist() == [0.25]
    other = FixedPointQuantizer.of((torch.ones(3), torch.zeros(3), torch.full((3,), 4.0)), "RND", "SAT")
    quantizer.load_state_dict(other.state_dict())
    assert quantizer(x).unique().tolist() == [0.3125]


mantissas = st.lists(st.floats(-1e6, 1e6, width=32, allow_subnormal=False), min_size=1, max_size=10)


@settings(max_examples=100)
@given(mantissas, st.integers(1, 12), st.sampled_from(get_args(RoundMode)), st.sampled_from(get_args(OverflowMode)))
def test_significant_bits_bound_the_relative_error(values: list[float], bits: int, round_mode: RoundMode, overflow_mode: OverflowMode) -> None:
    quantizer = MantissaQuantizer(TensorFormat(k=True, i=1, f=bits - 1, round_mode=round_mode, overflow_mode=overflow_mode))
    x = torch.tensor(values)
    q = quantizer(x)
    assert bool(((q - x).abs() <= x.abs().clamp(min=2.0**-33) * 2.0 ** (1 - bits)).all())
    k, i, f = quantizer.format_of(x)
    assert torch.equal(k + i + f, torch.full_like(x, 1 + bits))
    assert torch.equal(fixed_point(q, k, i, f, round_mode, "SAT"), q), "the format holds the values"


@settings(max_examples=100)
@example([-0.9], 0, True, "RND", "SAT")
@given(mantissas, st.integers(0, 12), st.booleans(), st.sampled_from(get_args(RoundMode)), st.sampled_from(get_args(OverflowMode)))
def test_values_with_significant_bits_have_a_format_that_holds_them(
    values: list[float], bits: int, k: bool, round_mode: RoundMode, overflow_mode: OverflowMode
) -> None:
    quantizer = MantissaQuantizer(TensorFormat(k=k, f=bits, round_mode=round_mode, overflow_mode=overflow_mode))
    q = quantizer(torch.tensor(values))
    formats = quantizer.format_of(q)
    assert torch.equal(fixed_point(q, *formats, "TRN", "SAT"), q)
    assert torch.equal(sum(formats), torch.full_like(q, float(k + bits)))  # type: ignore[arg-type]


def test_significant_bits_of_special_values() -> None:
    assert MantissaQuantizer(TensorFormat(k=True, f=3))(torch.tensor([0.0, 1.0, -1.0, 0.75, 2.0**-20])).tolist() == [0, 1, -1, 0.75, 2.0**-20]
    assert MantissaQuantizer(TensorFormat(k=False, f=3))(torch.tensor([-1.0, 1.0])).tolist() == [0, 1]
    assert MantissaQuantizer(TensorFormat(k=True, f=0))(torch.tensor([0.3, 5.0])).tolist() == [0, 0]
    assert MantissaQuantizer(TensorFormat(k=True, f=7))(torch.tensor([1e-42, -1e-38])).abs().tolist() == [0, 0]
    carry = torch.tensor([0.999, -0.999])
    for mode in get_args(OverflowMode):
        assert MantissaQuantizer(TensorFormat(k=True, f=3, overflow_mode=mode))(carry).sign().tolist() == [1, -1], mode
    x = torch.tensor([0.3, -7.0], requires_grad=True)
    MantissaQuantizer(TensorFormat(k=True, f=3))(x).sum().backward()
    assert x.grad.tolist() == [1, 1]


@pytest.mark.parametrize("field", ["i", "f"])
@pytest.mark.parametrize("bits", [33, -33, 2.5, True])
def test_bits_out_of_range(field: str, bits: float) -> None:
    with pytest.raises(ConfigError, match=rf"TensorFormat\.{field} must be .*, got {bits!r}"):
        TensorFormat(**{field: bits})


def test_calibration_leaves_out_what_is_not_finite_and_ends_at_the_widest_format() -> None:
    quantizer = FixedPointQuantizer(TensorFormat(k=True, i="auto", f=4))
    for values, bits in (([1.5, -3.0], 2), ([torch.nan, 0.5], 2), ([torch.inf, -torch.inf], 2), ([1e38], 31)):
        quantizer.observe(torch.tensor(values))
        assert quantizer.i == bits
    quantizer.observe(torch.zeros(0))
    assert quantizer.i == 31

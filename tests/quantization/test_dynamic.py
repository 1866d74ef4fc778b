"""Dynamic data against a search over all formats of the width, in NumPy; its life from training to the finalized model."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import pquant
from pquant.errors import ConfigError
from pquant.layers.calibrate import calibrate
from pquant.quantization import FixedPointQuantizer, Quantization, TensorFormat
from pquant.quantization.dynamic import DynamicQuantizer

from ..formats import EIGHT_BITS

DYNAMIC = replace(
    EIGHT_BITS,
    quantize_output=False,
    dynamic_data_quantization=True,
)
ROUND = {"RND": lambda v: np.floor(v + 0.5), "RND_CONV": np.round, "TRN": np.floor}


def quantizer(k: bool = True, i: int = 3, f: int = 4, shape: tuple[int, ...] = (), **options: Any) -> DynamicQuantizer:
    return DynamicQuantizer(TensorFormat(k=k, i=i, f=f, dynamic=True, **options), shape, 0.01)


def fewest(x: np.ndarray, k: bool, magnitude: int, round_mode: str) -> tuple[int, np.ndarray]:
    """Return the least i of all whose format of k + magnitude bits holds every rounded value, and those values."""
    x = x if k else x.clip(min=0)
    for i in range(-20, 21):
        step = 2.0 ** (i - magnitude)
        y = ROUND[round_mode](x / step) * step
        if (y <= 2.0**i - step).all() and (y >= -k * 2.0**i).all():
            return i, y
    raise AssertionError


VALUES = st.lists(st.floats(-100, 100, width=32, allow_subnormal=False), min_size=1, max_size=6)


@given(VALUES, st.booleans(), st.integers(2, 9), st.sampled_from(sorted(ROUND)), st.sampled_from(["SAT", "WRAP"]))
def test_a_batch_gets_the_fewest_integer_bits_that_hold_it(values: list[float], k: bool, magnitude: int, round_mode: Any, overflow: Any) -> None:
    x = np.array(values, dtype=np.float64)
    x[np.abs(x) < 1e-3] = 0.0
    x = np.abs(x) if overflow == "WRAP" and not k else x  # without a sign, negative values wrap around
    made = quantizer(k, 0, magnitude, round_mode=round_mode, overflow_mode=overflow).double()
    given_y = made(torch.from_numpy(x)).numpy()
    if (x if k else x.clip(min=0)).any():
        i, expected = fewest(x, k, magnitude, round_mode)
        assert made.i.item() == i
        np.testing.assert_array_equal(given_y, expected)
    else:
        assert (given_y == 0).all()


def test_the_width_stays_and_each_batch_has_its_own_step() -> None:
    made = quantizer()
    for scale in (0.1, 3.0, 50.0):
        x = torch.linspace(-scale, scale, 101)
        assert (made(x) - x).abs().max() <= scale * 2 ** (-7 + 1) and made.width().item() == 8
    assert made(torch.zeros(3)).tolist() == [0, 0, 0]


def test_by_channel() -> None:
    made = quantizer(shape=(2, 1))
    x = torch.tensor([[[0.3, -0.2], [30.0, 2.0]]])
    made(x)
    assert made.i.flatten().tolist() == [-1, 5] and made.width().flatten().tolist() == [8, 8]


def test_evaluation_has_the_range_of_the_batches_so_far() -> None:
    made = quantizer()
    assert [bits.item() for bits in made.format()] == [1, 3, 4]
    made(torch.tensor([0.4]))
    assert made.format()[1].item() == -1
    made(torch.tensor([12.0]))
    assert made.format()[1].item() == 4
    for _ in range(200):
        made(torch.tensor([0.4]))
    assert made.i.item() == pytest.approx(2.0, abs=1e-4)
    made.eval()
    assert made(torch.tensor([100.0])).item() == 4 - 2**-5 and made.i.item() == pytest.approx(2.0, abs=1e-4)
    assert torch.equal(made.finalized()(torch.tensor([100.0, 0.3])), made(torch.tensor([100.0, 0.3])))


def test_no_batch_gets_fewer_fractional_bits_than_asked_for() -> None:
    made = quantizer(min_f=3)
    assert made(torch.tensor([100.0, 0.2])).tolist() == [16 - 2**-3, 0.25]
    assert [bits.item() for bits in made.format()] == [1, 4, 3]
    assert made(torch.tensor([0.2])).item() == pytest.approx(0.2, abs=2**-9)


def test_the_gradient_passes_through_all_values() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0)) * 20
    x.requires_grad_()
    quantizer()(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(50))


def test_a_value_that_is_not_finite_does_not_stay_in_the_range() -> None:
    made = quantizer()
    made(torch.tensor([1.5, torch.inf, torch.nan]))
    assert made.format()[1].item() == 1


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


def test_the_finalized_model_holds_the_training_data() -> None:
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1)) * torch.logspace(-2, 1, 64).view(-1, 1)
    model = pquant.compress(net(), None, DYNAMIC, x[:2])
    assert isinstance(model[0].input_quantizer, DynamicQuantizer) and isinstance(model[0].weight_quantizer, FixedPointQuantizer)
    model.train()
    model(100 * x)
    pquant.trace_ranges(model, [x[:32], x[32:]])
    final = pquant.finalize(model)
    assert isinstance(final[0].input_quantizer, FixedPointQuantizer)
    i, f = (final[0].input_quantizer.format()[part].item() for part in (1, 2))
    assert i + f == 7 and 2.0 ** (i - 1) <= float(x.abs().max()) <= 2.0**i
    model.eval()
    assert torch.equal(final(x), model(x))
    assert (final[0].input_quantizer(x) - x).abs().max() <= 2.0 ** (-f - 1)


def test_calibration_leaves_it_alone() -> None:
    model = pquant.compress(net(), None, DYNAMIC, torch.zeros(2, 4))
    calibrate(model, [(torch.full((2, 4), 90.0),)])
    assert model[0].input_quantizer.i.isnan()


def test_one_quantizer_for_a_tensor_is_enough() -> None:
    assert quantizer().is_redundant_after(quantizer())
    for other in (quantizer(f=5), quantizer(k=False), quantizer(min_f=0), quantizer(round_mode="TRN"), quantizer(shape=(3,))):
        assert not quantizer().is_redundant_after(other)
    assert not quantizer().is_redundant_after(FixedPointQuantizer(TensorFormat(k=True, i=3, f=4)))


def test_a_compiled_step_gives_the_same() -> None:
    x = torch.randn(32, 5, generator=torch.Generator().manual_seed(3))
    eager, compiled = quantizer(), quantizer()
    graph = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for scale in (1.0, 9.0, 0.2):
        assert torch.equal(eager(scale * x), graph(scale * x))
    assert torch.equal(eager.i, compiled.i)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dynamic_data_quantization": True, "use_hgq": True}, "dynamic_data_quantization must be false with use_hgq"),
        ({"dynamic_data_quantization": True, "default_data_integer_bits": "auto"}, "default_data_integer_bits must be a number with dynamic"),
        ({"dynamic_data_quantization": True, "min_frac_bits": 1}, "default_data_fractional_bits must be at least min_frac_bits = 1, got 0"),
        ({"use_hgq": True, "min_frac_bits": 2, "default_data_fractional_bits": 2}, "default_weight_fractional_bits must be at least"),
        ({"min_frac_bits": 40}, r"min_frac_bits must be in \[-32, 32\]"),
        ({"layer_specific": {"a": {"weight": {"dynamic": True}}}}, r"\['a'\].weight.dynamic must be false"),
        ({"use_hgq": True, "layer_specific": {"a": {"input": {"dynamic": True}}}}, r"\['a'\].input.dynamic must be false"),
        ({"layer_specific": {"a": {"input": {"dynamic": True, "i": "auto"}}}}, r"\['a'\].input: TensorFormat.i must be a number with dynamic"),
        ({"layer_specific": {"a": {"input": {"min_f": 3, "f": 2}}}}, r"TensorFormat.f must be at least min_f = 3, got 2"),
    ],
)
def test_settings_that_do_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Quantization(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"min_frac_bits": 2}, "min_frac_bits = 2 has no effect without use_hgq or dynamic_data_quantization"),
        ({"dynamic_data_quantization": True, "enable_quantization": False}, "dynamic_data_quantization has no effect"),
    ],
)
def test_settings_without_effect_are_said(fields: dict[str, Any], message: str) -> None:
    assert [told for told in Quantization(**fields).warnings() if message in told]
    assert DYNAMIC.warnings() == []


def test_a_rule_makes_a_layer_dynamic_or_not() -> None:
    section = Quantization(layer_specific={"a": {"input": {"dynamic": True}}})
    assert section.formats("a").input.dynamic and not section.formats("b").input.dynamic and not section.formats("a").output.dynamic
    formats = DYNAMIC.formats("a")
    assert formats.input.dynamic and not formats.exponential.dynamic and not formats.weight.dynamic

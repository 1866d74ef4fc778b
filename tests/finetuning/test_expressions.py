"""From ranges and choices to Hydra's sweep expressions and back."""

from decimal import Decimal
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra_plugins.hydra_optuna_sweeper._impl import create_params_from_overrides
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pquant.errors import ConfigError
from pquant.finetuning import HyperparameterSearch
from pquant.finetuning.expressions import literal, optuna_object, range_expression, search_expressions

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(alphabet=st.characters(codec="ascii", exclude_characters="\\"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.from_regex(r"[a-z]{1,4}", fullmatch=True), inner, max_size=2),
    max_leaves=5,
)


def distribution(expression: str) -> BaseDistribution:
    space, _, _ = create_params_from_overrides([f"x={expression}"])
    return space["x"]


@given(st.integers(-50, 50), st.integers(0, 100), st.integers(1, 20))
def test_integer_ranges_have_all_steps_up_to_the_end(low: int, width: int, step: int) -> None:
    values = list(range(low, low + width + 1, step))
    assert distribution(range_expression(low, low + width, step)) == IntDistribution(values[0], values[-1], step=step)


@given(st.integers(-50, 50), st.integers(0, 100), st.integers(1, 20), st.sampled_from([10, 100, 1000]))
def test_float_ranges_have_all_steps_up_to_the_end(low: int, width: int, step: int, scale: int) -> None:
    values = [Decimal(value) / scale for value in range(low, low + width + 1, step)]
    found = distribution(range_expression(low / scale, (low + width) / scale, step / scale))
    assert found == FloatDistribution(float(values[0]), float(values[-1]), step=step / scale)


def test_logarithmic_ranges() -> None:
    assert distribution(range_expression(1e-5, 0.1, "log")) == FloatDistribution(1e-5, 0.1, log=True)
    assert distribution(range_expression(1, 64, "log")) == IntDistribution(1, 64, log=True)


@given(VALUES)
def test_literals_are_read_back_with_their_type(value: Any) -> None:
    read = OverridesParser.create().parse_override(f"x={literal(value)}").value()
    assert read == value and repr(read) == repr(value)


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-7, 5e-4, 12345.678])
def test_numbers_lose_only_noise(value: float) -> None:
    assert float(literal(value)) == pytest.approx(value, rel=1e-11)
    assert literal(0.1 + 0.2) == "0.3"


def test_a_grid_given_to_the_sampler_is_the_space_and_null_takes_a_field_out() -> None:
    search = {"numerical": {"a": [1, 3, 1], "b": None}, "categorical": {"c": [True, "x y"], "d": None}}
    sampler = {"type": "GridSampler", "params": {"search_space": {"e": [1, 2]}, "seed": 3}}
    assert search_expressions(search, sampler) == {"a": "range(1,4,1)", "c": "choice(true,'x y')", "e": "choice(1,2)"}
    assert optuna_object("samplers", sampler) == {"_target_": "optuna.samplers.GridSampler", "_partial_": True, "seed": 3}
    assert optuna_object("pruners", {"type": None, "params": {"n": 1}}) is None


def test_choices_keep_their_order_and_type() -> None:
    assert distribution("choice(true,1.5,adam)") == CategoricalDistribution([True, 1.5, "adam"])


@pytest.mark.parametrize("values", [[1, 0, 1], [0, 1, 0], [0, 1], "x", [0, 1, "log"], [True, 2, 1], [0, float("inf"), 1], [1, 2, "exp"]])
def test_what_is_no_range_is_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=r"numerical\['lr'\] must be \[low, high, step\]"):
        HyperparameterSearch(numerical={"lr": values})

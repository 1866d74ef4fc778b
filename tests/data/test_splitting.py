from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.model_selection import train_test_split

from pquant.data import Splits
from pquant.data.splitting import Fractions, as_power_of_two, hold_out, standardize
from pquant.errors import ConfigError

CLASSES = ["a", "b", "c"]


def rows_of(splits: Splits) -> list[list[int]]:
    """The row numbers in each part, where the first feature is the row number."""
    return [part.tensors[0][:, 0].int().tolist() for part in (splits.train, splits.validation, splits.test)]


def numbered(labels: list[int], seed: int = 0, **fields: object) -> Splits:
    y = np.array(labels)
    return Fractions(standardize=False, **fields).split(np.arange(float(len(y)))[:, None], y, seed, CLASSES)


def real(y: np.ndarray, **fields: object) -> Splits:
    return Fractions(standardize=False, **fields).split(np.arange(float(len(y)))[:, None], y, 0, None)


@given(
    counts=st.lists(st.integers(5, 60), min_size=3, max_size=3),
    validation=st.floats(0.1, 0.3),
    test=st.floats(0.1, 0.3),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40)
def test_parts_have_exact_sizes_no_overlap_and_classes_in_proportion(counts: list[int], validation: float, test: float, seed: int) -> None:
    labels = np.repeat([0, 1, 2], counts).tolist()
    total = len(labels)
    try:
        splits = numbered(labels, seed, validation_fraction=validation, test_fraction=test)
    except ConfigError:
        assert min(round(total * validation), round(total * test)) < 3
        return
    parts = rows_of(splits)
    assert [len(part) for part in parts[1:]] == [round(total * validation), round(total * test)]
    assert sorted(sum(parts, [])) == list(range(total))
    for part, tensors in zip(parts, (splits.train, splits.validation, splits.test), strict=True):
        assert tensors.tensors[1].tolist() == [labels[row] for row in part]
        for label, count in enumerate(counts):
            assert abs(tensors.tensors[1].tolist().count(label) - len(part) * count / total) <= 1.5


@given(data=st.data(), counts=st.lists(st.integers(1, 40), min_size=2, max_size=6), stratified=st.booleans(), seed=st.integers(0, 2**31))
@settings(max_examples=200)
def test_what_is_held_out_is_what_scikit_learn_holds_out(data: st.DataObject, counts: list[int], stratified: bool, seed: int) -> None:
    y = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    rows = np.flatnonzero(np.arange(len(y)) % data.draw(st.integers(2, 9)))
    count = data.draw(st.integers(1, max(1, len(rows) - 1)))
    classes = list("abcdef") if stratified else None
    try:
        expected = train_test_split(rows, test_size=count, random_state=seed, stratify=y[rows] if stratified else None)
    except ValueError:
        with pytest.raises(ConfigError, match="cannot hold out"):
            hold_out(rows, y, count, seed, classes)
        return
    assert [part.tolist() for part in hold_out(rows, y, count, seed, classes)] == [part.tolist() for part in expected]


def test_same_seed_gives_the_same_parts_and_another_seed_others() -> None:
    labels = [0, 1, 2] * 30
    assert rows_of(numbered(labels, 3)) == rows_of(numbered(labels, 3))
    assert rows_of(numbered(labels, 3)) != rows_of(numbered(labels, 4))


def test_given_test_rows_are_the_test_set_in_order() -> None:
    y = np.array([0, 1, 2] * 10)
    splits = Fractions(standardize=False, validation_fraction=0.25).split(np.arange(30.0)[:, None], y, 0, CLASSES, test_rows=6)
    train, validation, test = rows_of(splits)
    assert test == list(range(24, 30))
    assert len(validation) == 6
    assert sorted(train + validation) == list(range(24))


@pytest.mark.parametrize("labels", [[0] * 20 + [1] * 20 + [2], [0] * 20 + [1] * 20 + [2] * 2])
def test_a_class_that_is_too_small_is_named_with_its_count(labels: list[int]) -> None:
    with pytest.raises(ConfigError, match=f"the smallest of 3 classes, 'c', has only {labels.count(2)}$"):
        numbered(labels, validation_fraction=0.3, test_fraction=0.3)


def test_fewer_rows_held_out_than_classes_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot hold out 2 of 18 examples with the classes in proportion"):
        numbered([0, 1, 2] * 6, test_fraction=0.1)


def test_real_targets_are_split_unstratified_and_become_columns() -> None:
    splits = real(np.arange(20.0) / 3, scale_target=False)
    assert splits.num_classes is None
    assert splits.num_outputs == 1
    assert [len(part) for part in rows_of(splits)] == [14, 2, 4]
    inputs, targets = splits.train.tensors
    assert inputs.dtype == targets.dtype == torch.float32
    assert targets.shape == (14, 1)
    assert torch.equal(targets, inputs / 3)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int64, bool])
def test_real_targets_are_scaled_by_the_training_rows_and_given_back_in_their_units(dtype: type) -> None:
    y = (np.arange(40) % 2 if dtype is bool else 5 * np.arange(40) - 7).astype(dtype)
    splits = real(y)
    train = splits.train.tensors[1]
    rows = splits.train.tensors[0][:, 0].int().numpy()
    assert train.dtype == torch.float32
    assert float(train.mean()) == pytest.approx(0, abs=1e-6)
    assert float(train.std(correction=0)) == pytest.approx(1)
    assert splits.units == pytest.approx({"target_scale": y[rows].astype(float).std(), "target_offset": y[rows].astype(float).mean()})
    for part in (splits.train, splits.validation, splits.test):
        x, scaled = part.tensors
        back = scaled[:, 0].double() * splits.target_scale + splits.target_offset
        assert np.allclose(back, y[x[:, 0].int().numpy()].astype(float), atol=1e-4)


def test_targets_stay_as_they_are_for_classes_and_on_request_and_constant_ones_keep_scale_1() -> None:
    classes = numbered([0, 1, 2] * 20, scale_target=True)
    assert (classes.target_scale, classes.target_offset, classes.units) == (1, 0, {})
    assert real(np.arange(40.0), scale_target=False).units == {"target_scale": 1, "target_offset": 0}
    constant = real(np.full(40, 5e5))
    assert constant.units == {"target_scale": 1, "target_offset": 5e5}
    assert (constant.train.tensors[1] == 0).all()


@pytest.mark.parametrize("standardize", [True, "power_of_two", False])
def test_what_was_done_to_the_inputs_undoes_it(standardize: Any) -> None:
    x = np.random.default_rng(0).normal([0, 50, 3e-4], [1, 900, 1e-5], (90, 3))
    splits = Fractions(standardize=standardize).split(x, np.arange(90) % 3, 0, CLASSES, features=["u", "v", "w"])
    done = splits.preprocessing
    assert (done.features, done.classes, done.note) == (("u", "v", "w"), ("a", "b", "c"), "")
    raw = Fractions(standardize=False).split(x, np.arange(90) % 3, 0, CLASSES)
    for part, before in zip((splits.train, splits.test), (raw.train, raw.test), strict=True):
        assert np.allclose(part.tensors[0].double() * done.scale + done.offset, before.tensors[0].double(), rtol=1e-5, atol=1e-9)
    assert splits.described["features"] == ["u", "v", "w"] and splits.described["classes"] == CLASSES
    assert np.allclose(splits.described["input_scale"], done.scale) and "target_scale" not in splits.described


def test_a_power_of_two_is_the_nearest_and_a_constant_feature_keeps_scale_1() -> None:
    mean, scale = as_power_of_two(torch.tensor([1.0, 10.0, -0.3, 5.0]), torch.tensor([1.5, 1.4, 0.1, 1.0]))
    assert scale.tolist() == [2, 1, 0.125, 1]
    assert mean.tolist() == [1, 10, -0.296875, 5]


def test_the_targets_of_a_reconstruction_have_no_classes() -> None:
    splits = numbered([0, 1, 2] * 20, reconstruct=True)
    assert splits.classes == () and splits.described["input_offset"] == 0


@pytest.mark.parametrize("fields", [{"standardize": True, "scale_target": False}, {"standardize": False}])
def test_values_too_large_to_scale_are_refused(fields: dict[str, bool]) -> None:
    y = np.linspace(-1e300, 1e300, 20)
    with pytest.raises(ConfigError, match=r"values up to 1e\+300 are too large to scale to deviation 1"):
        Fractions(**fields).split(y[:, None], y, 0, None)


def test_too_few_rows_for_a_regression_is_an_error() -> None:
    with pytest.raises(ConfigError, match="cannot hold out 1 of 1 examples$"):
        hold_out(np.arange(1), np.zeros(1), 1, 0, None)


def test_fractions_must_leave_something_to_train_on() -> None:
    with pytest.raises(ConfigError, match=r"Fractions.validation_fraction must be below 1 - test_fraction = 0.4, got 0.5"):
        Fractions(validation_fraction=0.5, test_fraction=0.6)
    with pytest.raises(ConfigError, match=r"Fractions.test_fraction must be in \(0, 1\), got 0"):
        Fractions(test_fraction=0.0)


def test_standardisation_is_fitted_on_the_first_part_only() -> None:
    train, other = torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.tensor([[100.0, 6.0]])
    standardize([train, other], 0)
    assert train.tolist() == [[-1, 0], [1, 0]]
    assert other.tolist() == [[98, 1]]


def test_the_training_part_of_a_split_has_mean_zero_and_deviation_one() -> None:
    x = np.random.default_rng(0).normal(50, 7, (90, 4))
    splits = Fractions().split(x, np.array([0, 1, 2] * 30), 0, CLASSES)
    train, test = splits.train.tensors[0], splits.test.tensors[0]
    assert torch.allclose(train.mean(0), torch.zeros(4), atol=1e-6)
    assert torch.allclose(train.std(0, correction=0), torch.ones(4), atol=1e-5)
    assert not torch.allclose(test.mean(0), torch.zeros(4), atol=1e-2)


@given(
    x=arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 3)), elements=st.floats(-1e12, 1e12)),
    constant=st.floats(-1e12, 1e12),
)
@settings(deadline=None)
def test_standardised_values_are_finite_and_bounded_also_for_constant_columns(x: np.ndarray, constant: float) -> None:
    train = torch.from_numpy(np.column_stack([x, np.full(len(x), constant)]))
    standardize([train], 0)
    assert torch.isfinite(train).all()
    assert (train[:, -1] == 0).all()
    assert train.abs().max() <= len(x) ** 0.5 * 1.001 or train.abs().max() < 1e-3


def test_inputs_of_any_shape_can_be_the_targets() -> None:
    x = np.random.default_rng(0).normal(5, 2, (90, 1, 4, 4))
    splits = Fractions(reconstruct=True).split(x, np.array([0, 1, 2] * 30), 0, CLASSES)
    assert splits.num_classes is None and splits.num_outputs == 16
    for part in (splits.train, splits.validation, splits.test):
        inputs, targets = part.tensors
        assert torch.equal(targets, inputs.flatten(1))
    assert torch.allclose(splits.train.tensors[1].mean(0), torch.zeros(16), atol=1e-6)

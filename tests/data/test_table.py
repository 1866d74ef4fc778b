import logging
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pquant.data import Table
from pquant.data.columns import encode, read_columns, typed_targets
from pquant.errors import ConfigError


def frame(rows: int = 60) -> pd.DataFrame:
    number = np.arange(rows)
    return pd.DataFrame({"width": number * 1.0, "height": number % 7, "kind": np.array(["b", "c", "a"])[number % 3], "price": number / 3})


def written(tmp_path: Path, table: pd.DataFrame, suffix: str = "csv") -> str:
    path = tmp_path / f"table.{suffix}"
    table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_classes_are_numbered_by_sorted_name(tmp_path: Path, suffix: str) -> None:
    table = frame().drop(columns="price")
    splits = Table(path=written(tmp_path, table, suffix), target="kind", standardize=False).load(0)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [42, 6, 12]
    assert splits.num_classes == 3
    x, y = splits.train.tensors
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert splits.input_shape == (2,)
    assert y.tolist() == [[1, 2, 0][int(row) % 3] for row in x[:, 0]]
    assert x[:, 1].tolist() == [row % 7 for row in x[:, 0].tolist()]


def test_real_targets_are_a_regression(tmp_path: Path) -> None:
    splits = Table(path=written(tmp_path, frame().drop(columns="kind")), target="price", standardize=False, scale_target=False).load(0)
    assert splits.num_classes is None
    x, y = splits.train.tensors
    assert y.shape == (42, 1)
    assert torch.allclose(y[:, 0], x[:, 0] / 3)


def test_features_and_real_targets_are_standardised(tmp_path: Path) -> None:
    splits = Table(path=written(tmp_path, frame().drop(columns="kind").assign(same=5)), target="price").load(0)
    x, y = splits.train.tensors
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-6)
    assert torch.allclose(x.std(0, correction=0), torch.tensor([1.0, 1.0, 0.0]), atol=1e-6)
    assert float(y.mean()) == pytest.approx(0, abs=1e-6)
    assert float(y.std(correction=0)) == pytest.approx(1)
    assert splits.target_offset == pytest.approx(59 / 6, abs=1)


@pytest.mark.parametrize(
    ("target", "task", "classes"),
    [
        (np.arange(1010) % 100, "auto", 100),
        (np.arange(1010) % 101, "auto", None),
        (np.arange(1010) % 101, "classification", 101),
        (np.arange(1010) % 3, "regression", None),
        (np.arange(1010) % 3 * 0.5, "auto", None),
        (np.arange(1010) % 3 * 0.5, "classification", 3),
        (np.arange(1010) % 2 == 0, "auto", 2),
    ],
)
def test_task(tmp_path: Path, target: np.ndarray, task: str, classes: int | None) -> None:
    table = pd.DataFrame({"x": np.arange(1010.0), "y": target})
    splits = Table(path=written(tmp_path, table), task=task, validation_fraction=0.3, test_fraction=0.3).load(0)
    assert splits.num_classes == classes


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_without_a_target_every_column_is_a_feature_to_reconstruct(tmp_path: Path, caplog: pytest.LogCaptureFixture, suffix: str) -> None:
    table = frame().drop(columns="kind")
    np.savez(tmp_path / "table.npz", x=table.to_numpy())
    path = str(tmp_path / "table.npz") if suffix == "npz" else written(tmp_path, table, suffix)
    with caplog.at_level(logging.INFO):
        splits = Table(path=path, target=None, reconstruct=True).load(0)
    assert caplog.messages == ["reconstruction of 3 features"]
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [42, 6, 12]
    assert splits.num_classes is None and splits.num_outputs == 3
    x, y = splits.train.tensors
    assert y.dtype == torch.float32 and torch.equal(x, y)
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-6)


def test_the_parts_of_an_npz_need_no_target_to_be_reconstructed(tmp_path: Path) -> None:
    x = np.arange(50.0)[:, None]
    np.savez(tmp_path / "a.npz", x_train=x[:40], x_test=x[40:])
    splits = Table(path=str(tmp_path / "a.npz"), target=None, reconstruct=True, standardize=False).load(0)
    assert splits.test.tensors[1][:, 0].tolist() == list(range(40, 50))


def test_classes_stay_in_proportion_where_the_features_are_reconstructed(tmp_path: Path) -> None:
    path = written(tmp_path, frame().drop(columns="price"))
    features, classes = (Table(path=path, target="kind", standardize=False, reconstruct=reconstruct).load(0) for reconstruct in (True, False))
    assert torch.equal(features.test.tensors[1], classes.test.tensors[0])
    assert features.num_outputs == 2 and features.units == {"target_scale": 1.0, "target_offset": 0.0}


def test_no_target_is_an_error_where_something_is_to_be_predicted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Table.target must be the name of a column, or data.reconstruct=true, got None"):
        Table(path=written(tmp_path, frame()), target=None).load(0)


def test_the_seed_decides(tmp_path: Path) -> None:
    source = Table(path=written(tmp_path, frame().drop(columns="price")), target="kind")
    first, again, other = (source.load(seed).train.tensors[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_npz_with_x_and_a_named_target(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.arange(60).reshape(30, 2), energy=np.arange(30) / 2, y=np.arange(30) % 2)
    classes = Table(path=str(tmp_path / "a.npz")).load(0)
    energies = Table(path=str(tmp_path / "a.npz"), target="energy", standardize=False, scale_target=False).load(0)
    assert classes.num_classes == 2
    x, y = energies.test.tensors
    assert torch.equal(y[:, 0], x[:, 0] / 4)


def test_npz_with_its_own_test_set(tmp_path: Path) -> None:
    x = np.arange(50.0)[:, None]
    np.savez(tmp_path / "a.npz", x_train=x[:40], y_train=np.arange(40) % 2, x_test=x[40:], y_test=np.arange(10) % 2)
    splits = Table(path=str(tmp_path / "a.npz"), standardize=False).load(0)
    assert splits.test.tensors[0][:, 0].tolist() == list(range(40, 50))
    assert [len(splits.train), len(splits.validation)] == [36, 4]


def test_the_parts_of_an_npz_are_named_by_the_target(tmp_path: Path) -> None:
    x = np.arange(50.0)[:, None]
    np.savez(tmp_path / "a.npz", x_train=x[:40], kind_train=np.arange(40) % 2, x_test=x[40:], kind_test=np.arange(10) % 2)
    assert len(Table(path=str(tmp_path / "a.npz"), target="kind").load(0).test) == 10
    with pytest.raises(ConfigError, match="there is no array 'y_train'"):
        Table(path=str(tmp_path / "a.npz")).load(0)


@pytest.mark.parametrize("empty", ["train", "test"])
def test_an_empty_part_of_an_npz_is_refused(tmp_path: Path, empty: str) -> None:
    sizes = {"train": 40, "test": 10} | {empty: 0}
    arrays = {f"x_{part}": np.zeros((size, 2)) for part, size in sizes.items()} | {f"y_{part}": np.arange(size) % 2 for part, size in sizes.items()}
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ConfigError, match=f"a.npz: expected at least one row and one feature column in x_{empty}, got 0 and 2"):
        Table(path=str(tmp_path / "a.npz")).load(0)


def test_the_targets_of_the_parts_of_an_npz_must_go_together(tmp_path: Path) -> None:
    x, labels = np.arange(40.0)[:, None], np.array(["é", "b"] * 20)
    for train, test, classes in (
        (labels, np.char.encode(labels, "utf-8"), 2),
        (np.arange(40) % 2, np.arange(40) % 2 > 0, 2),
        (labels, np.zeros(40), 0),
    ):
        np.savez(tmp_path / "a.npz", x_train=x, y_train=train, x_test=x, y_test=test)
        if classes:
            assert Table(path=str(tmp_path / "a.npz")).load(0).num_classes == classes
        else:
            with pytest.raises(ConfigError, match="expected numbers or text in both targets, got <U1 and float64"):
                Table(path=str(tmp_path / "a.npz")).load(0)


@pytest.mark.parametrize("words", [["NA", "None"], ["null", "nan"], ["NaN", "x"]])
def test_words_for_a_missing_number_are_class_names_in_the_target_only(tmp_path: Path, words: list[str]) -> None:
    labels = [words[row % 2] for row in range(60)]
    path = written(tmp_path, pd.DataFrame({"x": np.arange(60.0), "y": labels}))
    splits = Table(path=path, standardize=False).load(0)
    x, y = splits.train.tensors
    assert splits.num_classes == 2
    assert y.tolist() == [sorted(words).index(labels[int(row)]) for row in x[:, 0]]
    with pytest.raises(ConfigError, match="column 'y' (has (30|60) missing values|holds)"):
        Table(path=path, target="x").load(0)


def test_an_empty_cell_of_the_target_is_missing(tmp_path: Path) -> None:
    path = written(tmp_path, pd.DataFrame({"x": np.arange(60.0), "y": ["NA", "b", None] * 20}))
    with pytest.raises(ConfigError, match="target 'y' has 20 missing values"):
        Table(path=path).load(0)


def test_words_for_a_missing_number_among_numbers_are_missing_unless_classes_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path, pd.DataFrame({"x": np.arange(60.0), "y": ["1.5", "2", "NA"] * 20}))
    for task in ("auto", "regression"):
        with pytest.raises(ConfigError, match="target 'y' has 20 missing values, such as 'NA', among its numbers; data.task=classification treats"):
            Table(path=path, task=task).load(0)
    assert Table(path=path, task="classification").load(0).num_classes == 3


def test_labels_of_bytes_are_text(tmp_path: Path) -> None:
    labels = np.array([b"\xc3\xa9", b"b\xff"] * 30)
    np.savez(tmp_path / "a.npz", x=np.arange(60.0)[:, None], y=labels)
    pd.DataFrame({"x": np.arange(60.0), "y": labels.astype(object)}).to_parquet(tmp_path / "a.parquet")
    for name in ("a.npz", "a.parquet"):
        columns = read_columns(tmp_path / name, "y")
        codes, classes = encode(columns.y, "auto", "y")
        assert classes == ["b\\xff", "é"]
        assert codes.tolist() == [1, 0] * 30


@pytest.mark.parametrize(
    ("values", "codes", "classes"),
    [
        ([Decimal("1.5"), Decimal("2")], [1.5, 2.0], None),
        ([10**30, 2], [1e30, 2.0], None),
        ([True, "x"], [0, 1], ["True", "x"]),
        ([b"b", "a"], [1, 0], ["a", "b"]),
    ],
)
def test_python_objects_of_the_target_are_numbers_or_text(values: list[object], codes: list[float], classes: list[str] | None) -> None:
    found, names = encode(typed_targets(np.array(values, dtype=object), "y"), "auto", "y")
    assert found.tolist() == codes
    assert names == classes


def test_other_objects_in_the_target_are_refused(tmp_path: Path) -> None:
    for values, kind in (
        ([[1], [2]], "ndarray"),
        (pd.date_range("2020", periods=2), "datetime64"),
        (pd.date_range("2020", periods=2, tz="CET"), "T"),
    ):
        path = written(tmp_path, pd.DataFrame({"x": [1.0, 2.0], "y": values}), "parquet")
        with pytest.raises(ConfigError, match=f"target 'y' must hold numbers, text or booleans, got {kind}"):
            Table(path=path).load(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": None}, r"column 'width' has 60 missing values, the first in row 0"),
        ({"height": [np.inf, np.nan, *[1.0] * 58]}, r"column 'height' has 1 infinite values, the first in row 0: correct them"),
        ({"name": "x"}, r"column 'name' holds \w+, not numbers: encode it, or leave it out by data.drop"),
        ({"kind": ["a"] * 30 + ["b"] * 29 + [None]}, r"target 'kind' has 1 missing values, the first in row 59: leave such rows out of the file"),
        ({"kind": "a"}, r"target 'kind' must have at least 2 classes, got 1"),
        ({"kind": ["a"] * 30 + ["b"] * 29 + ["c"]}, r"the smallest of 3 classes, 'c', has only 1"),
    ],
)
def test_columns_that_cannot_be_used_are_named(tmp_path: Path, change: dict[str, object], message: str) -> None:
    path = written(tmp_path, frame().drop(columns="price").assign(**change))
    with pytest.raises(ConfigError, match=message):
        Table(path=path, target="kind").load(0)


def test_unknown_target_names_the_nearest_column(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown column of .*table.csv 'prize': did you mean 'price'\? valid: width, height, kind, price"
    ) as error:
        Table(path=written(tmp_path, frame()), target="prize").load(0)
    assert str(error.value).startswith("data.target: ")


def test_regression_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target 'kind' must hold numbers for data.task=regression, got 'b'"):
        Table(path=written(tmp_path, frame()), target="kind", task="regression").load(0)


def test_a_table_needs_a_path_rows_and_features(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Table.path must be the path of a .csv, .tsv .* .parquet or .npz file, got ''"):
        Table().load(0)
    with pytest.raises(ConfigError, match="at least one row and one feature column, got 60 and 0"):
        Table(path=written(tmp_path, frame()[["price"]]), target="price").load(0)
    with pytest.raises(ConfigError, match="at least one row and one feature column, got 0 and 2"):
        Table(path=written(tmp_path, frame()[:0][["width", "height", "price"]]), target="price").load(0)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (np.zeros((4, 2)), np.zeros(3), r"expected numbers x \(N, F\) and y \(N,\), got x float64 \(4, 2\) and y float64 \(3,\)"),
        (np.zeros((4, 2, 2)), np.zeros(4), r"expected numbers x \(N, F\)"),
        (np.array([["a"]]), np.zeros(1), r"expected numbers x \(N, F\)"),
        (np.array([[1.0, np.nan]]), np.zeros(1), r"column 'x\[:, 1\]' has 1 missing values, the first in row 0"),
        (np.zeros((2, 1)), np.array([1, np.nan]), r"target 'y' has 1 missing or infinite values"),
        (np.zeros((0, 3)), np.zeros(0), r"at least one row and one feature column in x, got 0 and 3"),
        (np.zeros((2, 1)), np.zeros(2, complex), r"target 'y' must hold numbers, text or booleans, got complex128"),
        (np.zeros((2, 1)), np.zeros(2, "M8[s]"), r"target 'y' must hold numbers, text or booleans, got datetime64\[s\]"),
    ],
)
def test_npz_arrays_that_cannot_be_used_are_refused(tmp_path: Path, x: np.ndarray, y: np.ndarray, message: str) -> None:
    np.savez(tmp_path / "a.npz", x=x, y=y)
    with pytest.raises(ConfigError, match=message):
        Table(path=str(tmp_path / "a.npz")).load(0)


@pytest.mark.parametrize(
    ("y", "task", "said"),
    [
        (np.array(["w", "g", "z", "q", "t"])[np.arange(200) % 5], "auto", "classification of 'y', 5 classes: g, q, t, w, z"),
        (np.arange(200) % 12, "auto", "classification of 'y', 12 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 2 more"),
        (np.arange(200) * 1.0, "auto", "regression of 'y', mean 99.5, deviation 57.73"),
        (np.arange(200) % 2, "regression", "regression of 'y', mean 0.5, deviation 0.5"),
    ],
)
def test_what_was_recognised_is_said(tmp_path: Path, y: np.ndarray, task: str, said: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    Table(path=written(tmp_path, pd.DataFrame({"x": np.arange(200.0), "y": y})), task=task).load(0)
    assert caplog.messages == [said]


def test_without_pandas_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, frame())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"a .csv file needs pandas and pyarrow: .*tables.*; an .npz file needs neither"):
        Table(path=path).load(0)


def test_features_are_chosen_by_name_in_their_order(tmp_path: Path) -> None:
    table = frame().assign(event=[f"e{row}" for row in range(60)])
    path = written(tmp_path, table)
    chosen = Table(path=path, target="kind", features=["height", "width"], standardize=False).load(0)
    assert chosen.features == ("height", "width")
    x = chosen.train.tensors[0]
    assert x[:, 0].tolist() == [row % 7 for row in x[:, 1].tolist()]
    left = Table(path=path, target="kind", drop=["event", "price"], standardize=False).load(0)
    assert left.features == ("width", "height") and torch.equal(left.train.tensors[0], x.flip(1))
    np.savez(tmp_path / "a.npz", x=table[["width", "height", "price"]].to_numpy(), y=table.kind.to_numpy(str), features=np.array(["w", "h", "p"]))
    of_npz = Table(path=str(tmp_path / "a.npz"), features=["h", "w"], standardize=False).load(0)
    assert of_npz.features == ("h", "w") and torch.equal(of_npz.train.tensors[0], x)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"features": ["width", "width"]}, "data.features: a feature is given twice in width, width"),
        ({"features": ["width", "hight"]}, r"data.features: unknown feature of .* 'hight': did you mean 'height'"),
        ({"features": ["kind"]}, "data.features: unknown feature of .* 'kind'"),
        ({"drop": ["heigth"]}, r"data.drop: unknown feature of .* 'heigth': did you mean 'height'"),
        ({"drop": ["width", "height", "price"]}, "data.features and data.drop leave no feature of width, height, price"),
        ({"missing": "skip"}, "Table.missing must be one of 'error', 'drop', 'mean', got 'skip'"),
    ],
)
def test_a_wrong_choice_of_columns_is_refused(fields: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Table(path=written(tmp_path, frame()), target="kind", **fields).load(0)


def with_gaps(tmp_path: Path) -> str:
    table = frame().drop(columns="price").astype({"height": float})
    table.loc[::5, "height"] = np.nan
    return written(tmp_path, table)


def test_rows_with_missing_values_are_left_out_on_request(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = with_gaps(tmp_path)
    with pytest.raises(ConfigError, match="column 'height' has 12 missing values, the first in row [0-9]+: data.missing=drop leaves out their rows"):
        Table(path=path, target="kind").load(0)
    splits = Table(path=path, target="kind", missing="drop").load(0)
    assert sum(len(part) for part in (splits.train, splits.validation, splits.test)) == 48
    assert "12 of 60 rows have missing values and are left out" in caplog.text


def test_missing_values_become_the_mean_of_the_training_rows(tmp_path: Path) -> None:
    splits = Table(path=with_gaps(tmp_path), target="kind", missing="mean", standardize=False).load(0)
    x = splits.train.tensors[0]
    gaps = x[:, 0] % 5 == 0
    mean = x[~gaps, 1].mean()
    assert gaps.any() and torch.allclose(x[gaps, 1], mean) and torch.allclose(splits.preprocessing.missing[1].float(), mean)
    test = splits.test.tensors[0]
    assert torch.allclose(test[test[:, 0] % 5 == 0, 1], mean)
    assert Table(path=with_gaps(tmp_path), target="kind", missing="mean").load(0).described["input_missing"][1] == pytest.approx(float(mean))

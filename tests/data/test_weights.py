"""Event weights: read from a column, checked, scaled to mean 1 in each set, and no feature."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pquant.data import Constituents, Jets, Splits, Table
from pquant.data.checks import check_data
from pquant.errors import ConfigError

ROWS = 60


def frame() -> pd.DataFrame:
    number = np.arange(ROWS)
    return pd.DataFrame({"a": number * 1.0, "b": number % 7, "y": np.array(["u", "v"])[number % 2], "w": number + 1.0})


def saved(folder: Path, table: pd.DataFrame, suffix: str) -> str:
    path = folder / f"table.{suffix}"
    if suffix == "npz":
        np.savez(path, x=table[["a", "b"]].to_numpy(), y=table["y"].to_numpy().astype(str), w=table["w"].to_numpy())
    else:
        table.to_csv(path, index=False) if suffix == "csv" else table.to_parquet(path)
    return str(path)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "npz"])
def test_weights_go_with_their_examples_and_have_mean_1_in_each_set(tmp_path: Path, suffix: str) -> None:
    splits = Table(path=saved(tmp_path, frame(), suffix), weight="w", standardize=False).load(0)
    assert splits.input_shape == (2,) and splits.is_weighted
    for part in (splits.train, splits.validation, splits.test):
        x, _, weight = part.tensors
        raw = x[:, 0] + 1
        torch.testing.assert_close(weight, raw / raw.mean())
    check_data(splits)


def test_without_a_name_the_column_is_a_feature_and_examples_are_pairs(tmp_path: Path) -> None:
    splits = Table(path=saved(tmp_path, frame(), "csv")).load(0)
    assert splits.input_shape == (3,) and not splits.is_weighted and len(splits.train.tensors) == 2


def test_weights_change_neither_the_split_nor_the_scaling(tmp_path: Path) -> None:
    weighted, plain = (Table(path=saved(tmp_path, frame(), "csv"), features=["a", "b"], weight=weight).load(0) for weight in ("w", None))
    assert torch.equal(weighted.train.tensors[0], plain.train.tensors[0]) and torch.equal(weighted.test.tensors[1], plain.test.tensors[1])


def test_rows_that_are_left_out_take_their_weights_with_them(tmp_path: Path) -> None:
    table = frame()
    table.loc[5:24, "b"] = np.nan
    splits = Table(path=saved(tmp_path, table, "csv"), weight="w", missing="drop", standardize=False).load(0)
    x, _, weight = splits.train.tensors
    torch.testing.assert_close(weight, (x[:, 0] + 1) / (x[:, 0] + 1).mean())


def test_the_files_own_test_set_has_its_own_weights(tmp_path: Path) -> None:
    x, y = np.arange(80.0).reshape(40, 2), np.arange(40) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, w_train=x[:, 0] + 1, x_test=x[:10], y_test=y[:10], w_test=np.arange(10) == 3)
    with pytest.raises(ConfigError, match=r"data.weight: expected numbers \(10,\) in 'w_test', got bool \(10,\)"):
        Table(path=str(tmp_path / "a.npz"), weight="w").load(0)
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, w_train=x[:, 0] + 1, x_test=x[:10], y_test=y[:10], w_test=1.0 * (np.arange(10) == 3))
    splits = Table(path=str(tmp_path / "a.npz"), weight="w").load(0)
    assert splits.test.tensors[2].tolist() == [0, 0, 0, 10, 0, 0, 0, 0, 0, 0]


def test_reconstruction_is_weighted_too(tmp_path: Path) -> None:
    splits = Table(path=saved(tmp_path, frame().drop(columns="y"), "csv"), target=None, weight="w", reconstruct=True).load(0)
    x, y, weight = splits.train.tensors
    assert torch.equal(x, y) and x.shape[1] == 2 and float(weight.mean()) == pytest.approx(1)


def test_constituents_and_jets_have_weights(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    y, w = np.arange(100) % 5, np.arange(100) + 1.0
    np.savez(tmp_path / "sets.npz", x=random.normal(size=(100, 4, 3)), y=y, w=w)
    np.savez(tmp_path / "jets.npz", x=random.normal(size=(100, 16)), y=y, w=w)
    for source in (Constituents(path=str(tmp_path / "sets.npz"), weight="w"), Jets(path=str(tmp_path / "jets.npz"), weight="w")):
        weights = torch.cat([part.tensors[2] / part.tensors[2].min() for part in (source.load(0).train,)])
        assert len(weights.unique()) == len(weights) and source.load(0).is_weighted


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(np.arange(ROWS) == 7, -0.5, 1.0), "table.csv: data.weight: 'w' has 1 negative weights; the first is -0.5, in row 7"),
        (np.where(np.arange(ROWS) == 9, np.nan, 1.0), "table.csv: data.weight: 'w' has 1 missing or infinite weights; the first is nan, in row 9"),
        (np.where(np.arange(ROWS) == 9, np.inf, 1.0), "'w' has 1 missing or infinite weights; the first is inf"),
        (np.zeros(ROWS), "data.weight: all 60 weights in 'w' are 0"),
        (np.array(["heavy"] * ROWS), "data.weight: expected numbers in 'w', got"),
        (np.arange(ROWS) % 2 == 0, "data.weight: expected numbers in 'w', got bool"),
    ],
)
def test_weights_that_are_none_are_refused(tmp_path: Path, values: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Table(path=saved(tmp_path, frame().assign(w=values), "csv"), weight="w").load(0)


def test_a_set_without_any_weight_is_refused_by_name(tmp_path: Path) -> None:
    validation = Table(path=saved(tmp_path, frame(), "csv"), features=["a"], standardize=False).load(0).validation.tensors[0][:, 0]
    table = frame().assign(w=~np.isin(np.arange(ROWS), validation.int().numpy()) * 1.0)
    with pytest.raises(ConfigError, match="data.weight: all 6 examples of the validation set have weight 0"):
        Table(path=saved(tmp_path, table, "csv"), weight="w").load(0)


@pytest.mark.parametrize("fields", [{"target": "w"}, {"features": ["a", "w"]}, {"drop": ["w"]}])
def test_the_column_of_weights_is_nothing_else(fields: dict) -> None:
    with pytest.raises(ConfigError, match="Table.weight must be a"):
        Table(path="a.csv", weight="w", **fields)


@pytest.mark.parametrize(
    ("suffix", "message"), [("csv", "data.weight: unknown column of .*: did you mean 'w'"), ("npz", "there is no array 'ww': did")]
)
def test_a_misspelt_column_is_named(tmp_path: Path, suffix: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Table(path=saved(tmp_path, frame(), suffix), weight="ww").load(0)


@pytest.mark.parametrize("weight", [torch.tensor([1.0, -1.0]), torch.zeros(2), torch.tensor([1.0, float("nan")])])
def test_weights_of_a_source_of_ones_own_are_checked(weight: torch.Tensor) -> None:
    part, wrong = (torch.utils.data.TensorDataset(torch.ones(2, 1), torch.arange(2), one) for one in (torch.ones(2), weight))
    with pytest.raises(ConfigError, match=r"the test set (must have weights of at least 0|has weights that are not finite)"):
        check_data(Splits(part, part, wrong, 2))

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pquant.data import Arrays
from pquant.errors import ConfigError

Named = dict[str, Any]


def saved(folder: Path, **arrays: Any) -> str:
    np.savez(folder / "a.npz", **arrays)
    return str(folder / "a.npz")


def examples(count: int = 40, shape: tuple[int, ...] = (3, 5)) -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, (count, *shape))


@pytest.mark.parametrize("shape", [(4,), (3, 5), (2, 3, 4), (2, 2, 2, 2)])
def test_inputs_keep_their_shape_and_each_value_is_standardised(tmp_path: Path, shape: tuple[int, ...]) -> None:
    splits = Arrays(path=saved(tmp_path, x=examples(shape=shape), y=np.array(["b", "a"])[np.arange(40) % 2])).load(0)
    x, y = splits.train.tensors
    assert splits.input_shape == shape and x.dtype == torch.float32 and y.dtype == torch.int64
    assert splits.classes == ("a", "b") and splits.num_classes == 2
    torch.testing.assert_close(x.mean(0), torch.zeros(shape), atol=1e-5, rtol=0)
    torch.testing.assert_close(x.std(0, correction=0), torch.ones(shape))
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [28, 4, 8]


def test_a_folder_of_npy_files_is_the_same_as_an_npz_file(tmp_path: Path) -> None:
    arrays = {"x": examples(), "energy": np.arange(40.0), "w": np.arange(40) + 1}
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "notes.txt").write_text("no array")
    whole, folder = (Arrays(path=path, target="energy", weight="w").load(0) for path in (saved(tmp_path, **arrays), str(tmp_path)))
    for one, other in zip(whole.train.tensors, folder.train.tensors, strict=True):
        assert torch.equal(one, other)
    assert len(whole.train.tensors) == 3


def test_a_regression_may_have_several_outputs_with_one_scale(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    y = np.stack([np.arange(40.0), 100 - np.arange(40.0)], 1)
    with caplog.at_level(logging.INFO):
        splits = Arrays(path=saved(tmp_path, x=examples(), y=y)).load(0)
    assert "regression of the 2 columns of 'y'" in caplog.text
    targets = torch.cat([part.tensors[1] for part in (splits.train, splits.validation, splits.test)])
    assert splits.num_outputs == 2 and splits.num_classes is None
    assert float(splits.train.tensors[1].mean()) == pytest.approx(0, abs=1e-6) and float(splits.train.tensors[1].std(correction=0)) == pytest.approx(
        1
    )
    torch.testing.assert_close((targets * splits.target_scale + splits.target_offset).sum(1), torch.full((40,), 100.0))


def test_one_column_of_targets_is_the_same_as_none(tmp_path: Path) -> None:
    columns, flat = (Arrays(path=saved(tmp_path, x=examples(), y=y)).load(0) for y in (np.arange(40)[:, None] % 2, np.arange(40) % 2))
    assert torch.equal(columns.train.tensors[1], flat.train.tensors[1]) and flat.num_classes == 2


def test_the_files_own_test_set_is_used(tmp_path: Path) -> None:
    x, y = examples(50), np.arange(50) / 7
    path = saved(tmp_path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    splits = Arrays(path=path, standardize=False, scale_target=False).load(0)
    assert torch.equal(splits.test.tensors[0], torch.from_numpy(x[40:]).float()) and len(splits.train) == 36


def test_inputs_can_be_reconstructed_without_targets(tmp_path: Path) -> None:
    splits = Arrays(path=saved(tmp_path, x=examples()), target=None, reconstruct=True).load(0)
    x, y = splits.train.tensors
    assert splits.num_outputs == 15 and torch.equal(x.flatten(1), y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.arange(40)}, r"expected numbers x \(N, ...\) .* got x int64 \(40,\)"),
        ({"x": np.zeros((0, 3))}, r"got x float64 \(0, 3\)"),
        ({"x": np.array([["a", "b"]] * 40)}, r"got x <U1 \(40, 2\)"),
        ({"x": np.ones((40, 2), complex)}, r"got x complex128"),
        (
            {"x": np.where(np.arange(120).reshape(40, 3) == 7, np.nan, 1.0)},
            r"1 values are not finite numbers of 32 bits; the first is x\[2, 1\] = nan",
        ),
        ({"y": np.arange(39)}, r"expected targets \(40,\) or \(40, outputs\) for x \(40, 3, 5\), got int64 \(39,\)"),
        ({"y": np.zeros((40, 2, 2))}, r"got float64 \(40, 2, 2\)"),
        (
            {"y": np.eye(2, dtype=int)[np.arange(40) % 2]},
            r"target 'y' is int64 \(40, 2\): classes must be one label per example, \(N,\); data.task=regression",
        ),
    ],
)
def test_other_arrays_are_refused_with_what_was_found(tmp_path: Path, change: Named, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arrays(path=saved(tmp_path, **({"x": examples(), "y": np.arange(40) % 2} | change))).load(0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x_test": examples(10, (5, 3))}, r"of one shape, got x_train float64 \(40, 3, 5\) and x_test float64 \(10, 5, 3\)"),
        ({"x_test": np.zeros((10, 3, 5), np.uint8)}, "expected bytes in both inputs or in none, got float64 and uint8"),
        ({"y_test": np.zeros((10, 2))}, r"expected as many outputs in both targets, got \(40,\) and \(10, 2\)"),
    ],
)
def test_sets_that_do_not_fit_each_other_are_refused(tmp_path: Path, change: Named, message: str) -> None:
    arrays = {"x_train": examples(), "y_train": np.arange(40.0), "x_test": examples(10), "y_test": np.arange(10.0)}
    with pytest.raises(ConfigError, match=message):
        Arrays(path=saved(tmp_path, **(arrays | change))).load(0)


def test_a_path_that_is_none_of_arrays_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Arrays.path must be the path of an npz file, or a folder of npy files"):
        Arrays().load(0)
    with pytest.raises(ConfigError, match="a.csv: expected an npz file, or a folder .*; data=table reads tables"):
        Arrays(path="a.csv").load(0)
    with pytest.raises(ConfigError, match="there is no file 'nowhere.npz'"):
        Arrays(path="nowhere.npz").load(0)
    (tmp_path / "x.npy").write_bytes(b"no array")
    with pytest.raises(ConfigError, match="there is no array 'y'; expected the arrays x, y or x_train, y_train, x_test, y_test; found x"):
        Arrays(path=str(tmp_path)).load(0)
    np.save(tmp_path / "y.npy", np.arange(3))
    with pytest.raises(ConfigError, match="cannot be read as a folder of npy files of plain arrays"):
        Arrays(path=str(tmp_path)).load(0)

"""Feature columns and a target, from any table on disk."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pquant.data.files import GIVEN_SPLIT, read_frame, read_npz
from pquant.data.splitting import Array
from pquant.errors import ConfigError, unknown

Task = Literal["auto", "classification", "regression"]
MOST_CLASSES = 100


@dataclass(frozen=True)
class Columns:
    """Features ``x`` float64 (N, F) and targets ``y`` (N,) as in the file; the last ``test_rows`` rows are the file's own test set."""

    x: Array
    y: Array
    test_rows: int = 0


def read_columns(path: str | Path, target: str) -> Columns:
    """Return the columns of a csv, parquet or npz file.

    Raises:
        ConfigError: no such file, no such target, features that are not numbers or not finite.
    """
    return _read_npz(path, target) if Path(path).suffix == ".npz" else _read_frame(path, target)


def encode(y: Array, task: Task, target: str) -> tuple[Array, list[str] | None]:
    """Return targets as indices of the sorted class names, with those names; or as float64 without names, for a regression.

    With ``task`` "auto" real numbers, and integers of more than 100 values, are a regression.

    Raises:
        ConfigError: missing values, a single class, or a regression on values that are not numbers.
    """
    if y.dtype.kind == "f" and not np.isfinite(y).all():
        raise ConfigError(f"target '{target}' has {(~np.isfinite(y)).sum()} missing or infinite values")
    numeric = y.dtype.kind in "iufb"
    if task == "regression" and not numeric:
        raise ConfigError(f"target '{target}' must hold numbers for data.task=regression, got '{y[0]}'")
    names, codes = np.unique(y if numeric else y.astype(str), return_inverse=True)
    if task == "regression" or (task == "auto" and (y.dtype.kind == "f" or (y.dtype.kind in "iu" and len(names) > MOST_CLASSES))):
        return y.astype(np.float64), None
    if len(names) < 2:
        raise ConfigError(f"target '{target}' must have at least 2 classes, got {len(names)}")
    return codes, [str(name) for name in names]


def _read_npz(path: str | Path, target: str) -> Columns:
    arrays = read_npz(path, ("x", target), GIVEN_SPLIT)
    for x, y in zip(arrays[::2], arrays[1::2], strict=True):
        if x.ndim != 2 or x.shape[1] != arrays[0].shape[1] or x.dtype.kind not in "iufb" or y.shape != (len(x),):
            raise ConfigError(f"{path}: expected numbers x (N, F) and y (N,), got x {x.dtype} {x.shape} and y {y.dtype} {y.shape}")
    x, y = np.concatenate(arrays[::2]).astype(np.float64), np.concatenate(arrays[1::2])
    _require_some(path, x.shape)
    names = [f"x[:, {index}]" for index in range(x.shape[1])]
    return Columns(_finite(path, x, names), y, test_rows=len(arrays[3]) if len(arrays) == 4 else 0)


def _read_frame(path: str | Path, target: str) -> Columns:
    frame = read_frame(path)
    from pandas.api.types import is_numeric_dtype

    if target not in frame.columns:
        raise ConfigError(f"data.target: {unknown(f'column of {path}', target, frame.columns)}")
    features, y = frame.drop(columns=target), frame[target]
    _require_some(path, features.shape)
    if y.isna().any():
        raise ConfigError(f"{path}: target '{target}' has {y.isna().sum()} missing values")
    for name, column in features.items():
        if not is_numeric_dtype(column):
            raise ConfigError(f"{path}: column '{name}' holds {column.dtype}, not numbers: encode it or leave it out")
    x = features.to_numpy(dtype=np.float64, na_value=np.nan)
    return Columns(_finite(path, x, [str(name) for name in features.columns]), y.to_numpy())


def _require_some(path: str | Path, shape: tuple[int, ...]) -> None:
    if not all(shape):
        raise ConfigError(f"{path}: expected at least one row and one feature column, got {shape[0]} and {shape[1]}")


def _finite(path: str | Path, x: Array, names: list[str]) -> Array:
    """Return ``x`` if all its values are finite."""
    bad = (~np.isfinite(x)).sum(0)
    for name, count in zip(names, bad, strict=True):
        if count:
            raise ConfigError(f"{path}: column '{name}' has {count} missing or infinite values")
    return x

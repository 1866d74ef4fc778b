"""Reading feature columns and a target from a table on disk."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pquant.data.files import MISSING, file_kind, npz_names, read_frame
from pquant.data.parts import checked_weights, joined, read_parts
from pquant.data.splitting import Array
from pquant.errors import ConfigError, unknown

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Task = Literal["auto", "classification", "regression"]
Missing = Literal["error", "drop", "mean"]
MOST_CLASSES = 100

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Columns:
    """Features ``x``, float64 (N, F), and targets ``y`` (N,), numbers, booleans or text; the last ``test_rows`` rows are the file's own test set.

    ``names`` are the names of the features; ``weight``, float64 (N,), are event weights, or None.
    """

    x: Array
    y: Array
    names: tuple[str, ...]
    test_rows: int = 0
    weight: Array | None = None


@dataclass(frozen=True)
class Choice:
    """The choice of feature columns and of the column of event weights, and the treatment of missing values.

    Attributes:
        features: names of the features, in this order; None for all columns.
        drop: names of columns that are not features.
        missing: "error"; "drop" leaves out rows with missing values; "mean" keeps missing values, as NaN, for a later replacement.
        weight: name of the column of event weights, which is not a feature; None: no weights.
    """

    features: Sequence[str] | None = None
    drop: Sequence[str] = ()
    missing: Missing = "error"
    weight: str | None = None

    def names(self, path: str | Path, there: Sequence[str]) -> list[str]:
        """Return the names of the features among the column names ``there``.

        Raises:
            ConfigError: a name is not in ``there`` or is given twice, or no feature is left.
        """
        for key, names in (("features", self.features or ()), ("drop", self.drop)):
            for name in names:
                if name not in there:
                    raise ConfigError(f"data.{key}: {unknown(f'feature of {path}', name, there)}")
        if self.features and len({*self.features}) < len(self.features):
            raise ConfigError(f"data.features: a feature is given twice in {', '.join(self.features)}")
        chosen = [name for name in (there if self.features is None else self.features) if name not in self.drop]
        if there and not chosen:
            raise ConfigError(f"{path}: data.features and data.drop leave no feature of {', '.join(there)}")
        return chosen


ALL = Choice()


def read_columns(path: str | Path, target: str | None, choice: Choice = ALL) -> Columns:
    """Return the columns of a csv, tsv, parquet or npz file; without ``target`` all columns are features, and the targets are 0.

    Raises:
        ConfigError: no such file, target or feature, an empty part, features that are not finite numbers, or targets of another type.
    """
    return _read_npz(path, target, choice) if file_kind(path) == ".npz" else _read_frame(path, target, choice)


def encode(y: Array, task: Task, target: str) -> tuple[Array, list[str] | None]:
    """Return targets as indices of the sorted class names, with these names; for a regression, return them as float64, with None.

    With ``task`` "auto", real numbers, and integers with more than 100 different values, are regression targets. Words such as "NA" among numbers are
    missing values; with ``task`` "classification" they are classes.

    Raises:
        ConfigError: missing values, a single class, or a regression on values that are not numbers.
    """
    if task != "classification":
        _require_no_missing_words(y, target)
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


def _read_npz(path: str | Path, target: str | None, choice: Choice) -> Columns:
    parts = read_parts(path, target, choice.weight)
    for part in parts:
        x, y = part.x, part.y
        if x.ndim != 2 or x.shape[1] != parts[0].x.shape[1] or x.dtype.kind not in "iufb" or y.shape != (len(x),):
            raise ConfigError(f"{path}: expected numbers x (N, F) and y (N,), got x {x.dtype} {x.shape} and y {y.dtype} {y.shape}")
        _require_some(path, x.shape, f" in {part.name}")
    found = joined(path, [replace(part, y=typed_targets(part.y, target or "")) for part in parts])
    names = npz_names(path, found.x.shape[1]) or [f"x[:, {index}]" for index in range(found.x.shape[1])]
    chosen = choice.names(path, names)
    x = found.x.astype(np.float64)[:, [names.index(name) for name in chosen]]
    return _complete(path, Columns(x, found.y, tuple(chosen), found.test_rows, found.weight), choice.missing)


def _read_frame(path: str | Path, target: str | None, choice: Choice) -> Columns:
    frame = read_frame(path, target)
    from pandas.api.types import is_numeric_dtype

    if target is not None and target not in frame.columns:
        raise ConfigError(f"data.target: {unknown(f'column of {path}', target, frame.columns)}")
    if choice.weight is not None and choice.weight not in frame.columns:
        raise ConfigError(f"data.weight: {unknown(f'column of {path}', choice.weight, frame.columns)}")
    features = frame.drop(columns=[name for name in (target, choice.weight) if name is not None])
    features = features[choice.names(path, list(features.columns))]
    _require_some(path, features.shape)
    y = np.zeros(len(frame)) if target is None else _targets(path, frame[target], target)
    for name, column in features.items():
        if not is_numeric_dtype(column):
            raise ConfigError(f"{path}: column '{name}' holds {column.dtype}, not numbers: encode it, or leave it out by data.drop")
    x = features.to_numpy(dtype=np.float64, na_value=np.nan)
    names = [str(name) for name in features.columns]
    return _complete(path, Columns(x, y, tuple(names), weight=_weights(path, frame, choice.weight)), choice.missing)


def _weights(path: str | Path, frame: "DataFrame", name: str | None) -> Array | None:
    from pandas.api.types import is_bool_dtype, is_numeric_dtype

    if name is None:
        return None
    if not is_numeric_dtype(frame[name]) or is_bool_dtype(frame[name]):
        raise ConfigError(f"{path}: data.weight: expected numbers in '{name}', got {frame[name].dtype}")
    return checked_weights(path, name, frame[name].to_numpy(dtype=np.float64, na_value=np.nan), len(frame))


def _targets(path: str | Path, y: "Series[Any]", target: str) -> Array:
    if y.isna().any():
        found = f"{y.isna().sum()} missing values, the first in row {y.isna().argmax()}"
        raise ConfigError(f"{path}: target '{target}' has {found}: leave such rows out of the file; data.missing is for features")
    return typed_targets(y.to_numpy(), target)


def _require_some(path: str | Path, shape: tuple[int, ...], where: str = "") -> None:
    if not all(shape):
        raise ConfigError(f"{path}: expected at least one row and one feature column{where}, got {shape[0]} and {shape[1]}")


def typed_targets(y: Array, target: str) -> Array:
    """Return targets as numbers, booleans or text. Bytes are decoded, Python numbers become float64, and mixed types become text."""
    if y.dtype.kind == "S":
        return np.char.decode(y, "utf-8", "backslashreplace")
    if y.dtype.kind in "iufbU":
        return y
    values = [value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value for value in y] if y.dtype.kind == "O" else []
    kinds = {type(value) for value in values}
    if kinds and kinds <= {int, float, Decimal}:
        return np.array([float(str(value)) for value in values])
    if kinds and kinds <= {str, bool, int, float}:
        return np.array(values, dtype=str)
    found = ", ".join(sorted(kind.__name__ for kind in kinds)) or y.dtype
    raise ConfigError(f"target '{target}' must hold numbers, text or booleans, got {found}")


def _require_no_missing_words(y: Array, target: str) -> None:
    """Refuse text in which everything except words such as "NA" is a number."""
    if y.dtype.kind != "U":
        return
    words = np.isin(y, MISSING)
    try:
        numbers = y[~words].astype(np.float64)
    except ValueError:
        return
    if len(numbers) and words.any():
        found = f"{words.sum()} missing values, such as '{y[words][0]}', among its numbers"
        raise ConfigError(f"target '{target}' has {found}; data.task=classification treats them as classes")


def _complete(path: str | Path, columns: Columns, missing: Missing) -> Columns:
    """Return the columns after the treatment of missing values: all values are finite, or NaN where they will be replaced."""
    x = columns.x
    refused = {"infinite": (np.isinf(x), "correct them, or leave the column out by data.drop")}
    if missing == "error":
        refused["missing"] = np.isnan(x), "data.missing=drop leaves out their rows, mean replaces them"
    for what, (bad, advice) in refused.items():
        for name, column in zip(columns.names, bad.T, strict=True):
            if column.any():
                raise ConfigError(f"{path}: column '{name}' has {column.sum()} {what} values, the first in row {column.argmax()}: {advice}")
    left: Array = np.array(~np.isnan(x).any(axis=1))
    if missing != "drop" or left.all():
        return columns
    log.warning("%s: %d of %d rows have missing values and are left out", path, len(x) - left.sum(), len(x))
    test_rows = int(left[len(x) - columns.test_rows :].sum())
    if not left.any() or columns.test_rows and not test_rows:
        raise ConfigError(f"{path}: every row{' of the test set' if left.any() else ''} has a missing value: data.missing=mean replaces them")
    weight = None if columns.weight is None else columns.weight[left]
    return Columns(x[left], columns.y[left], columns.names, test_rows, weight)

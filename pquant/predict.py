"""Predictions of a trained model for a file: ``pquant predict run=<folder> data.path=<file> [output=predictions.csv]``."""

import csv
import inspect
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pquant.data.files import array_names, expanded, is_arrays, npz_names, read_frame, read_npz
from pquant.data.parts import checked_weights
from pquant.errors import ConfigError, unknown
from pquant.installation import PROGRAM
from pquant.resume import saved_config
from pquant.tracking.files import write_atomic
from pquant.trained_model import Array, TrainedModel, load, place_of

USAGE = f"{' '.join(PROGRAM)} predict run=<folder> data.path=<file> [output=predictions.csv]"
KEYS = ("run", "data.path", "output")


def main(arguments: Sequence[str]) -> None:
    """Write a CSV file with one row per row of ``data.path``, and print the metric if ``data.path`` has the column of the run's target.

    The metric is weighted if the run has event weights and ``data.path`` has their column.

    The columns of the CSV file are ``prediction`` and, for classes, one column ``p(<class>)`` per class.

    Raises:
        ConfigError: an unknown or missing argument, no run, an output that is no CSV file or is ``data.path``, or a file that cannot be read, has no
            rows, or lacks a column that the model needs.
    """
    if {"--help", "-h"} & {*arguments}:
        print(USAGE, inspect.cleandoc(str(main.__doc__)).partition("\n\nRaises:")[0], sep="\n\n")
        return
    given = _given(arguments)
    path, output = given["data.path"], Path(given.get("output", "predictions.csv"))
    if output.suffix.lower() != ".csv" or output.resolve() == expanded(path, "data.path").resolve():
        raise ConfigError(f"output must be a .csv file other than data.path, got '{output}'")
    model = load(given["run"], "run")
    target, weight = _columns(Path(given["run"]))
    with _naming(path):
        rows, truth, weights = _read(path, model.features, target, weight)
        table = _table(model, rows)
        metric = "" if truth is None else _metric(model, rows, truth, weights)
    write_atomic(output, table)
    print(f"{len(rows)} predictions in {output}")
    if metric:
        print(metric)


@contextmanager
def _naming(path: str) -> Iterator[None]:
    """Name the file in each ``ConfigError`` about its rows."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error) if path in str(error) else f"{path}: {error}") from error


def _given(arguments: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in KEYS:
            raise ConfigError(f"{unknown('argument of predict', key, KEYS)}; {USAGE}")
        if not equals or not value:
            raise ConfigError(f"{key} needs a value; {USAGE}")
        given[key] = value
    for key in KEYS[:2]:
        if key not in given:
            raise ConfigError(f"predict needs {key}=...; {USAGE}")
    return given


def _columns(run: Path) -> tuple[str | None, str | None]:
    """Return the names of the columns of the target and of the event weights; None if the run's data does not have them."""
    data = saved_config("run", run).data
    found = (data.get("target", "y"), data.get("weight"))
    target, weight = (name if isinstance(name, str) else None for name in found)
    return target, weight


def _read(path: str, features: Sequence[str], target: str | None, weight: str | None) -> tuple[Any, Array | None, Array | None]:
    """Return the rows of a table, or of an npz file or a folder of npy files with an array ``x``; and its targets and weights, if it has any.

    If the arrays name their features, the columns of ``x`` are those of the model's ``features``, in their order.
    """
    if not is_arrays(path):
        frame = read_frame(path, target)
        named = {name: frame[name].to_numpy() for name in (target, weight) if name in frame.columns}
        rows: Any = frame
    else:
        there = array_names(path)
        names = ["x", *(name for name in (target, weight) if name in there)]
        rows, *others = read_npz(path, tuple(names))
        named = dict(zip(names[1:], others, strict=True))
        if rows.ndim == 2 and features and (own := npz_names(path, rows.shape[1])):
            rows = rows[:, [place_of(name, own) for name in features]]
    if not len(rows):
        raise ConfigError("the file has no rows")
    weights = checked_weights(path, str(weight), named[weight], len(rows)) if weight in named else None
    return rows, named.get(target), weights


def _table(model: TrainedModel, rows: Any) -> str:
    columns: dict[str, Array] = {"prediction": model.predict(rows)}
    if columns["prediction"].ndim > 1:
        columns = {f"prediction {number}": values for number, values in enumerate(columns["prediction"].T)}
    if model.is_classifier:
        probabilities = model.predict_proba(rows)
        columns |= {f"p({name})": values for name, values in zip(_classes(model), probabilities.T, strict=True)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    return text.getvalue()


def _metric(model: TrainedModel, rows: Any, truth: Array, weights: Array | None) -> str:
    """Return how well the model predicts the targets: the accuracy, or the root mean squared error, weighted if there are weights."""
    predicted = model.predict(rows)
    if model.is_classifier:
        names = _classes(model)
        truth = _as_names(truth, names)
        known = np.isin(truth, names)
        strange = truth[~known]
        left_out = f" of {known.sum()} rows; {len(strange)} have a class that the model does not know, such as '{strange[0]}'" if len(strange) else ""
        if not known.any() or (weights is not None and not weights[known].any()):
            return f"no accuracy{left_out}"
        return f"accuracy {np.average((predicted.astype(str) == truth)[known], weights=None if weights is None else weights[known]):.4f}{left_out}"
    errors = np.square(predicted - truth.reshape(predicted.shape).astype(np.float64))
    return f"rmse {np.sqrt(np.average(errors.reshape(len(errors), -1).mean(1), weights=weights)):.6g}"


def _classes(model: TrainedModel) -> tuple[str, ...]:
    """Return the names of the classes, or their numbers if they have no names."""
    return model.classes or tuple(map(str, range(model.described["num_outputs"])))


def _as_names(truth: Array, names: Sequence[str]) -> Array:
    """Return targets as names of classes. A column of whole numbers with an empty cell is read as floats: 1.0 then is the class "1"."""
    text = truth.astype(str)
    if truth.dtype.kind == "f" and not np.isin(text, names).any():
        return np.array([one.removesuffix(".0") for one in text.tolist()])
    return text

"""Predictions of a trained model for a file: ``pquant predict run=<folder> data.path=<file> [output=predictions.csv]``."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pquant.data.files import expanded, file_kind, read_frame, read_npz
from pquant.errors import ConfigError, unknown
from pquant.installation import PROGRAM
from pquant.resume import saved_config
from pquant.tracking.files import write_atomic
from pquant.trained_model import Array, TrainedModel, load

USAGE = f"{' '.join(PROGRAM)} predict run=<folder> data.path=<file> [output=predictions.csv]"
KEYS = ("run", "data.path", "output")


def main(arguments: Sequence[str]) -> None:
    """Write a CSV file with one row per row of ``data.path``, and print the metric if that file has the column of the run's target.

    The columns are ``prediction`` and, for classes, ``p(<class>)`` each.

    Raises:
        ConfigError: an unknown or missing argument, no run, a file that cannot be read, or without a column that the model needs.
    """
    given = _given(arguments)
    model, output = load(given["run"]), Path(given.get("output", "predictions.csv"))
    rows, truth = _read(given["data.path"], _target(Path(given["run"])))
    write_atomic(output, _table(model, rows))
    print(f"{len(rows)} predictions in {output}")
    if truth is not None:
        print(_metric(model, rows, truth))


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


def _target(run: Path) -> str | None:
    """Return the column that the run predicts, None if its data has none."""
    target = saved_config("run", run).data.get("target", "y")
    return target if isinstance(target, str) else None


def _read(path: str, target: str | None) -> tuple[Any, Array | None]:
    """Return the rows of a file, and its targets if it has any: a table, or an npz file with an array ``x`` (and one named like the target)."""
    if file_kind(path) != ".npz":
        frame = read_frame(path, target)
        return frame, frame[target].to_numpy() if target in frame.columns else None
    with np.load(expanded(path, "data.path"), allow_pickle=False) as archive:
        has_target = target in archive.files
    arrays = read_npz(path, ("x", str(target)) if has_target else ("x",))
    return arrays[0], arrays[1] if has_target else None


def _table(model: TrainedModel, rows: Any) -> str:
    columns: dict[str, Array] = {"prediction": model.predict(rows)}
    if columns["prediction"].ndim > 1:
        columns = {f"prediction {number}": values for number, values in enumerate(columns["prediction"].T)}
    if model.is_classifier:
        probabilities = model.predict_proba(rows)
        names = model.classes or tuple(map(str, range(probabilities.shape[1])))
        columns |= {f"p({name})": values for name, values in zip(names, probabilities.T, strict=True)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
    return text.getvalue()


def _metric(model: TrainedModel, rows: Any, truth: Array) -> str:
    """Return how well the model predicts the targets: the accuracy, or the root mean squared error."""
    predicted = model.predict(rows)
    if model.is_classifier:
        return f"accuracy {(predicted.astype(str) == truth.astype(str)).mean():.4f}"
    return f"rmse {np.sqrt(np.square(predicted - truth.astype(np.float64)).mean()):.6g}"

"""The finalized model of a run, with the preprocessing that turns raw rows into predictions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pquant.errors import ConfigError, did_you_mean
from pquant.saved_model import WEIGHTS, finalized_model, model_sections, with_weights
from pquant.tracking.files import read_json

if TYPE_CHECKING:
    from pandas import DataFrame

Array = NDArray[Any]
Rows = Union[Array, Tensor, Sequence[Any], "DataFrame"]
DESCRIPTION = "model.json"
BATCH = 1024
NEEDED = ("input_shape", "num_outputs", "task")


@dataclass(frozen=True)
class TrainedModel:
    """A finalized model, and the description of its inputs and outputs.

    Attributes:
        module: the finalized model, in evaluation mode on the CPU; it takes inputs as the data source preprocesses them.
        input_shape: shape of one input, without the batch axis.
        classes: the names of the classes, in the order of the outputs; empty for a regression, or if they have no names.
        features: the names along the last axis of an input, if they are known.
        described: the values of ``model.json``.
    """

    module: nn.Module
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    features: tuple[str, ...]
    described: Mapping[str, Any] = field(repr=False)

    def predict(self, rows: Rows) -> Array:
        """Return the predictions for raw rows (N, ...): names of classes, or their numbers if they have no names; numbers in the target's own units.

        Args:
            rows: raw numbers of shape (N, *input_shape), as in the file of the training data, or a pandas table with the columns of that file.
                Images with channels last in the file have channels last here; an input of one axis may have the axes that it had in the file.

        Returns:
            (N,), or for a regression of several outputs (N, outputs), float64.

        Raises:
            ConfigError: rows of another shape, without a column, or with values that are not finite numbers.
        """
        outputs = self.outputs(rows)
        if self.is_classifier:
            best = outputs.argmax(1)
            return np.array(self.classes)[best] if self.classes else best
        values = outputs * self.described.get("target_scale", 1.0) + self.described.get("target_offset", 0.0)
        return values[:, 0] if values.shape[1] == 1 else values

    def predict_proba(self, rows: Rows) -> Array:
        """Return the probabilities of the classes (N, classes), float64, for raw rows; see :meth:`predict`.

        Raises:
            ConfigError: the model is a regression model; or as in :meth:`predict`.
        """
        if not self.is_classifier:
            raise ConfigError("predict_proba needs a model that was trained on classes, but this is a regression model: use predict")
        return torch.from_numpy(self.outputs(rows)).softmax(1).numpy()

    @torch.no_grad()
    def outputs(self, rows: Rows) -> Array:
        """Return the outputs of the module for raw rows (N, outputs), float64; see :meth:`predict`."""
        inputs = self.inputs(rows)
        parts = [self.module(part) for part in inputs.split(BATCH)] or [torch.zeros(0, self.described["num_outputs"])]
        return torch.cat(parts).double().numpy()

    def inputs(self, rows: Rows) -> Tensor:
        """Return raw rows as inputs of the module: float32 (N, *input_shape), shifted and scaled like the training data."""
        if "input_offset" not in self.described:
            raise ConfigError("the data source of this run does not state its preprocessing (Splits.preprocessing is None): call the module")
        x = torch.from_numpy(self._numbers(rows)).to(getattr(torch, self.described.get("input_dtype", "float64")))
        offset, scale = (torch.tensor(self.described[f"input_{name}"], dtype=x.dtype) for name in ("offset", "scale"))
        done = (x - offset) / scale
        if self.described.get("input_padding"):
            done = done.masked_fill(~x.any(-1, keepdim=True), 0)
        return done.float()

    @property
    def is_classifier(self) -> bool:
        """Whether outputs are scores of classes."""
        return bool(self.described["task"] == "classification")

    def _numbers(self, rows: Rows) -> Array:
        """Return rows as numbers (N, *input_shape)."""
        x = self._columns(rows) if hasattr(rows, "columns") else np.asarray(rows)
        if x.dtype.kind not in "iufb":
            raise ConfigError(f"rows must hold numbers, got {x.dtype}")
        if self.described.get("input_channels_last") and x.ndim == 4 and x.shape[1:] != self.input_shape:
            x = np.moveaxis(x, -1, 1)
        flat = len(self.input_shape) == 1 and math.prod(x.shape[1:]) == self.input_shape[0]
        if flat or _without_ones(x.shape[1:]) == _without_ones(self.input_shape):
            x = x.reshape(len(x), *self.input_shape)
        if x.shape[1:] != self.input_shape:
            names = f", the columns {', '.join(self.features)}" if self.features else ""
            raise ConfigError(f"rows must have the shape (N, {', '.join(map(str, self.input_shape))}){names}, got {x.shape}")
        x = x.astype(np.float64)
        if "input_missing" in self.described:
            x = np.where(np.isnan(x), np.array(self.described["input_missing"]), x)
        if not np.isfinite(x).all():
            row, *place = np.argwhere(~np.isfinite(x))[0].tolist()
            where = f"column '{self.features[place[-1]]}'" if self.features else f"place {place}"
            raise ConfigError(f"row {row} has a missing or infinite value in {where}")
        return x

    def _columns(self, table: Any) -> Array:
        """Return the feature columns of the run from a table, in the order of the run."""
        for name in self.features:
            place_of(name, list(table.columns))
        chosen = table[list(self.features)] if self.features else table
        return np.stack([_float64(name, chosen[name]) for name in chosen.columns], 1)


def place_of(name: str, names: Sequence[str]) -> int:
    """Return the place of a feature among the names of columns; ConfigError if it is missing."""
    if name not in names:
        hint = did_you_mean(name, names) or f"; the columns are {', '.join(map(str, names))}"
        raise ConfigError(f"there is no column '{name}', which the model needs{hint}")
    return names.index(name)


def _float64(name: str, column: Any) -> Array:
    try:
        return np.asarray(column.to_numpy(dtype=np.float64, na_value=np.nan))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"the column '{name}' must hold numbers: {error}") from error


def load(folder: str | Path, setting: str = "load") -> TrainedModel:
    """Return the finalized model of the run in ``folder``, ready to predict.

    The architecture is built again from the run's configuration, and the weights are read from ``model.safetensors``. No code in the folder is
    executed: the configuration may build only allowed classes, and classes of your own only if ``$PQUANT_ALLOW`` lists their package. Errors name
    ``setting``.

    Raises:
        ConfigError: not the folder of a run, a run that did not finish, a class that is not allowed, or weights that do not fit.
    """
    import pquant.config  # noqa: F401  (registers what configurations of runs refer to)

    folder = Path(folder)
    sections = model_sections(folder, setting)
    described = read_json(folder / DESCRIPTION)
    missing = [name for name in NEEDED if name not in described]
    if missing:
        raise ConfigError(f"{setting}: {folder / DESCRIPTION} has no '{missing[0]}': an earlier version wrote it; from_run={folder} makes a new one")
    shape = tuple(described["input_shape"])
    with torch.random.fork_rng(devices=[]):
        module = finalized_model(sections, torch.zeros(1, *shape), described["num_outputs"], str(folder), setting)
    with_weights(module, folder / WEIGHTS, setting)
    return TrainedModel(module.eval(), shape, tuple(described.get("classes", ())), tuple(described.get("features", ())), described)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)

"""Checks of the data: no split is empty, all values are finite, all targets are classes of the task."""

import logging

import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from pquant.data.splits import Splits
from pquant.errors import ConfigError

log = logging.getLogger(__name__)


def check_data(splits: Splits, train_finite: bool = True) -> None:
    """Check the sizes of the splits, and the values of splits in memory. A class without examples in such a split only gives a warning.

    Args:
        splits: the data.
        train_finite: whether the training inputs must be finite, too.

    Raises:
        ConfigError: a split is empty, a value is NaN or infinite, a target is not a class, or weights are negative or all 0.
    """
    for name, part in (("training", splits.train), ("validation", splits.validation), ("test", splits.test)):
        if not _size(part):
            raise ConfigError(f"the {name} set is empty")
        if type(part) is not TensorDataset:
            continue
        x, y, *weight = part.tensors
        if name != "training" or train_finite:
            _require_finite(name, "input", x)
        _require_finite(name, "target", y)
        for values in weight:
            _check_weights(name, values)
        if splits.num_classes is not None:
            _check_classes(name, y, splits.num_classes)


def _size(part: Dataset[tuple[Tensor, ...]]) -> int:
    return len(part)  # type: ignore[arg-type]


def _require_finite(name: str, what: str, values: Tensor) -> None:
    if bool(torch.isfinite(values).all()):
        return
    place = (~torch.isfinite(values)).nonzero()[0].tolist()
    raise ConfigError(f"the {name} set has {what}s that are not finite: {values[tuple(place)].item()} in example {place[0]}, position {place[1:]}")


def _check_weights(name: str, weight: Tensor) -> None:
    _require_finite(name, "weight", weight)
    if bool((weight < 0).any()) or not bool(weight.any()):
        raise ConfigError(f"the {name} set must have weights of at least 0, and not all 0; got {float(weight.min())} to {float(weight.max())}")


def _check_classes(name: str, y: Tensor, classes: int) -> None:
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= classes:
        raise ConfigError(f"the {name} set has targets from {low} to {high}; with {classes} classes they must be from 0 to {classes - 1}")
    absent = (torch.bincount(y.flatten(), minlength=classes) == 0).nonzero().flatten().tolist()
    if absent:
        log.warning("the %s set has no example of class %s", name, ", ".join(map(str, absent)))

"""Conversion of arrays to splits: validation and test sets drawn by seed, stratified by class, and standardised by the training set."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import TensorDataset

from pquant.data.splits import Preprocessing, Splits
from pquant.errors import ConfigError
from pquant.settings import Settings, setting

Array = NDArray[Any]
POWER_OF_TWO = "power_of_two"
OFFSET_STEPS = 8


@dataclass(frozen=True)
class Fractions(Settings):
    """The split settings of a data source that is a single table.

    Args:
        validation_fraction: share of all rows in the validation data.
        test_fraction: share of all rows in the test data.
        standardize: whether features are scaled to mean 0 and standard deviation 1 of the training rows. "power_of_two": the scale is the power of
            two nearest to the standard deviation, and the offset is the mean, rounded to 1/8 of the scale; a few bits of fixed-point arithmetic do
            this exactly.
        scale_target: whether the target of a regression is scaled in the same way, by one mean and deviation if it has several outputs. Losses are
            those of the scaled target; metrics are in the target's own units.
        reconstruct: whether the targets are the standardised features, flattened to one axis, for an autoencoder. A target column is then used only
            to give each part of the data the same share of each class.
    """

    validation_fraction: float = setting(0.1, gt=0, lt=1)
    test_fraction: float = setting(0.2, gt=0, lt=1)
    standardize: bool | Literal["power_of_two"] = True
    scale_target: bool = True
    reconstruct: bool = False

    def __post_init__(self) -> None:
        """Check the fields, and that rows are left for training."""
        super().__post_init__()
        if self.validation_fraction + self.test_fraction >= 1:
            raise self.error("validation_fraction", f"below 1 - test_fraction = {1 - self.test_fraction:g}")

    @property
    def fills(self) -> bool:
        """Whether missing values are replaced by the mean of the training rows."""
        return False

    def split(
        self,
        x: Array,
        y: Array,
        seed: int,
        classes: Sequence[str] | None,
        test_rows: int = 0,
        features: Sequence[str] = (),
        weight: Array | None = None,
    ) -> Splits:
        """Return the splits of examples.

        Args:
            x: inputs (N, ...).
            y: targets: indices (N,) of ``classes``, or real numbers (N,) or (N, outputs) if ``classes`` is None.
            seed: seed of the draw of validation and test set.
            classes: names of the classes; None for a regression.
            test_rows: number of last rows that are the test set; 0: the test set is drawn.
            features: names along the last axis of the inputs, if any.
            weight: event weights (N,), if any.

        Raises:
            ConfigError: too few examples, in a class or in total, values too large to scale, or a set whose weights are all 0.
        """
        total = len(y) - test_rows
        rows, test = np.arange(total), np.arange(total, len(y))
        if not test_rows:
            rows, test = hold_out(rows, y, portion(total, self.test_fraction), seed, classes)
        train, validation = hold_out(rows, y, portion(total, self.validation_fraction), seed, classes)
        parts = (train, validation, test)
        inputs = [torch.from_numpy(x[part]) for part in parts]
        missing = fill_missing(inputs, features) if self.fills else None
        done = self.scale(inputs) if self.standardize else Preprocessing(torch.zeros(()), torch.ones(()))
        done = dataclasses.replace(done, features=tuple(features), classes=() if self.reconstruct else tuple(classes or ()), missing=missing)
        splits = dataclasses.replace(self._targeted(inputs, [y[part] for part in parts], classes), preprocessing=done)
        return splits if weight is None else with_weights(splits, [weight[part] for part in parts])

    def _targeted(self, inputs: Sequence[Tensor], targets: Sequence[Array], classes: Sequence[str] | None) -> Splits:
        """Return the splits of scaled inputs with their targets."""
        if self.reconstruct:
            return reconstruction(inputs)
        if classes or not self.scale_target:
            return to_splits(inputs, targets, len(classes) if classes else None)
        targets = [part.astype(np.float64) for part in targets]
        offset, scale = (value.item() for value in moments(torch.from_numpy(targets[0].ravel()), 0))
        splits = to_splits(inputs, [(part - offset) / scale for part in targets], None)
        return dataclasses.replace(splits, target_scale=scale, target_offset=offset)

    def scale(self, parts: Sequence[Tensor]) -> Preprocessing:
        """Shift and scale the features of all ``parts`` in place by mean and standard deviation of the first; return the preprocessing."""
        return standardize(parts, 0, self.standardize == POWER_OF_TWO)


@dataclass(frozen=True)
class Weighted(Fractions):
    """The settings of a data source in a file whose examples may have weights.

    Args:
        weight: the name of the column, or array of an npz file, with the event weights; null: every example counts the same. Losses and metrics are
            weighted means. Weights are scaled to mean 1 in each of the training, validation and test sets. The column is no feature; the split and
            the scaling of features do not use it.
    """

    weight: str | None = None


def with_weights(splits: Splits, weights: Sequence[Array]) -> Splits:
    """Return splits in memory whose examples have weights, scaled to mean 1 in each of the three sets.

    Raises:
        ConfigError: all weights of a set are 0.
    """
    parts = (splits.train, splits.validation, splits.test)
    for name, weight in zip(("training", "validation", "test"), weights, strict=True):
        if not weight.any():
            raise ConfigError(f"data.weight: all {len(weight)} examples of the {name} set have weight 0")
    bounded = [weight / weight.max() for weight in weights]  # so that their sum is finite
    scaled = [torch.from_numpy(weight / weight.mean()).float() for weight in bounded]
    train, validation, test = (TensorDataset(*part.tensors, weight) for part, weight in zip(parts, scaled, strict=True))  # type: ignore[attr-defined]
    return dataclasses.replace(splits, train=train, validation=validation, test=test)


def fill_missing(parts: Sequence[Tensor], names: Sequence[str] = ()) -> Tensor:
    """Replace missing values (NaN) in all ``parts`` (N, features), in place, by the means of the features in the first part.

    Return these means (features,). Errors name the features by ``names``.

    Raises:
        ConfigError: all values of a feature are missing in the first part.
    """
    means = parts[0].nanmean(0)
    if bool(means.isnan().any()):
        place = int(means.isnan().nonzero()[0])
        feature = f"'{names[place]}'" if names else place
        raise ConfigError(f"feature {feature} has no value in any of the {len(parts[0])} training rows: leave it out by data.drop")
    for part in parts:
        part.copy_(torch.where(part.isnan(), means, part))
    return means


def portion(total: int, fraction: float) -> int:
    """Return the number of rows that is ``fraction`` of ``total``, at least 1."""
    return max(1, round(total * fraction))


def hold_out(rows: Array, y: Array, count: int, seed: int, classes: Sequence[str] | None) -> tuple[Array, Array]:
    """Split ``rows`` into the remaining rows and ``count`` held-out rows, stratified by the class ``y[row]`` if there are classes.

    The result equals that of scikit-learn's ``train_test_split``, whose import takes more than a second.

    Raises:
        ConfigError: too few rows, or a class is too small; the message names the smallest class and its number of examples.
    """
    left, random = len(rows) - count, np.random.RandomState(seed)
    message = f"cannot hold out {count} of {len(rows)} examples"
    if classes is None:
        if left < 1:
            raise ConfigError(message)
        order = random.permutation(len(rows))
        return rows[order[count:]], rows[order[:count]]
    labels, counts = np.unique(y[rows], return_counts=True)
    if counts.min() < 2 or min(left, count) < len(labels):
        codes, all_counts = np.unique(y, return_counts=True)
        smallest = f"'{classes[codes[all_counts.argmin()]]}', has only {all_counts.min()}"
        raise ConfigError(f"{message} with the classes in proportion: the smallest of {len(codes)} classes, {smallest}")
    kept = proportional(counts, left, random)
    held = proportional(counts - kept, count, random)
    drawn = [np.flatnonzero(y[rows] == label)[random.permutation(size)] for label, size in zip(labels, counts, strict=True)]
    rest = random.permutation(np.concatenate([members[:size] for members, size in zip(drawn, kept, strict=True)]))
    return rows[rest], rows[random.permutation(np.concatenate([members[-size:] for members, size in zip(drawn, held, strict=True) if size]))]


def proportional(counts: Array, total: int, random: np.random.RandomState) -> Array:
    """Return ``total`` divided in proportion to ``counts``; the largest remainders are rounded up, and equal ones are drawn at random."""
    exact = counts / counts.sum() * total
    parts = np.floor(exact)
    remainders = exact - parts
    for remainder in np.unique(remainders)[::-1]:
        missing = total - int(parts.sum())
        if not missing:
            break
        equal = np.flatnonzero(remainders == remainder)
        parts[random.choice(equal, min(len(equal), missing), replace=False)] += 1
    return parts.astype(int)


def standardize(parts: Sequence[Tensor], dim: int | tuple[int, ...], power_of_two: bool = False) -> Preprocessing:
    """Shift and scale all ``parts`` in place by mean and standard deviation over ``dim`` of the first; a constant feature is only shifted.

    Return the preprocessing of one example.
    """
    mean, scale = moments(parts[0], dim)
    if power_of_two:
        mean, scale = as_power_of_two(mean, scale)
    for part in parts:
        part.sub_(mean).div_(scale)
    return Preprocessing(mean[0], scale[0])


def as_power_of_two(mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Round mean and scale to simple values: return the multiple of 1/8 of the rounded scale nearest to each mean, and the nearest power of two."""
    power = torch.exp2(torch.log2(scale).round())
    step = power / OFFSET_STEPS
    return (mean / step).round() * step, power


def moments(values: Tensor, dim: int | tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation over ``dim``, whose axes stay with size 1; the deviation of a constant is 1.

    Raises:
        ConfigError: the squares of the values exceed the range of floating point.
    """
    std, mean = torch.std_mean(values, dim=dim, correction=0, keepdim=True)
    if bool(torch.isinf(std).any()):
        raise ConfigError(f"values up to {float(values.abs().max()):.3g} are too large to scale to deviation 1")
    noise = torch.finfo(std.dtype).eps * mean.abs()
    return mean, torch.where(std > noise, std, 1)


def to_splits(inputs: Sequence[Tensor], targets: Sequence[Array], num_classes: int | None) -> Splits:
    """Return splits of training, validation and test ``inputs`` as float32, with int64 class indices or float32 targets (N, outputs)."""
    train, validation, test = (TensorDataset(x.float(), _target(y, num_classes)) for x, y in zip(inputs, targets, strict=True))
    return Splits(train, validation, test, num_classes)


def reconstruction(inputs: Sequence[Tensor]) -> Splits:
    """Return splits of training, validation and test ``inputs`` as float32 whose targets are the same values (N, features)."""
    train, validation, test = (TensorDataset(x.float(), x.float().flatten(1)) for x in inputs)
    return Splits(train, validation, test, None)


def _target(y: Array, num_classes: int | None) -> Tensor:
    return torch.from_numpy(y.astype(np.int64)) if num_classes else torch.from_numpy(y.astype(np.float32).reshape(len(y), -1))

"""The result of a data source: three datasets, and the input and output sizes that a model needs."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pquant.data.augmentation import Augment
from pquant.errors import ConfigError

EXAMPLES = 32


@dataclass(frozen=True, eq=False)
class Preprocessing:
    """The preprocessing of raw inputs, ``(raw - offset) / scale``, and the names of features and classes, as a finalized model needs them.

    Attributes:
        offset: offset in raw units; broadcasts with one input.
        scale: scale in raw units; broadcasts with one input.
        features: the names along the last axis of an input; empty without names.
        classes: the names of the classes, in the order of the outputs; empty for a regression.
        note: a remark on preprocessing that offset and scale do not describe.
        padding: whether an item (the last axis of an input) whose raw values are all 0 is padding, and stays 0.
        missing: raw values by feature that replace missing values; None if no value may be missing.
        channels_last: whether raw inputs are images (height, width, channels), whose channels come first in an input.
    """

    offset: Tensor
    scale: Tensor
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    note: str = ""
    padding: bool = False
    missing: Tensor | None = None
    channels_last: bool = False

    def described(self) -> dict[str, Any]:
        """Return the values of ``model.json``: numbers, or nested lists where they differ by feature."""
        numbers = {"input_offset": _numbers(self.offset), "input_scale": _numbers(self.scale)}
        numbers |= {"input_dtype": str(self.offset.dtype).removeprefix("torch.")} | ({"input_padding": True} if self.padding else {})
        numbers |= {"input_missing": _numbers(self.missing)} if self.missing is not None else {}
        numbers |= {"input_channels_last": True} if self.channels_last else {}
        words = {"input_note": self.note, "features": list(self.features), "classes": list(self.classes)}
        return numbers | {name: value for name, value in words.items() if value}


@dataclass(frozen=True)
class Splits:
    """Training, validation and test sets of ``(input, target)`` pairs, or of ``(input, target, weight)`` if examples have weights.

    Inputs are float32 without the batch axis; targets int64 class indices when ``num_classes`` is given, else float32 of shape ``(outputs,)``.
    Weights are float32 scalars, at least 0, with mean 1 in each set.
    A float target in its own units is ``target * target_scale + target_offset``. ``preprocessing`` is None if the source does not state it.
    ``augment`` changes batches of training inputs at random; None: no augmentation.
    """

    train: Dataset[tuple[Tensor, ...]]
    validation: Dataset[tuple[Tensor, ...]]
    test: Dataset[tuple[Tensor, ...]]
    num_classes: int | None
    target_scale: float = 1.0
    target_offset: float = 0.0
    preprocessing: Preprocessing | None = None
    augment: Augment | None = None

    @property
    def units(self) -> dict[str, float]:
        """The scale and offset, by name, that convert regression outputs to the units of the target; {} for classes."""
        return {"target_scale": self.target_scale, "target_offset": self.target_offset} if self.num_classes is None else {}

    @property
    def described(self) -> dict[str, Any]:
        """The preprocessing of inputs, the units of outputs, and names, as written to the files of a model and its exports."""
        return (self.preprocessing.described() if self.preprocessing else {}) | self.units

    @property
    def interface(self) -> dict[str, Any]:
        """The description of inputs and outputs in ``model.json``: :attr:`described`, their shapes, and the meaning of the outputs."""
        task = "regression" if self.num_classes is None else "classification"
        return self.described | {"input_shape": list(self.input_shape), "num_outputs": self.num_outputs, "task": task}

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the outputs, if they are known."""
        return self.preprocessing.classes if self.preprocessing else ()

    @property
    def features(self) -> tuple[str, ...]:
        """The names along the last axis of an input, if they are known."""
        return self.preprocessing.features if self.preprocessing else ()

    @property
    def is_weighted(self) -> bool:
        """Whether examples have weights."""
        return len(self.train[0]) > 2

    @property
    def input_shape(self) -> torch.Size:
        """Shape of one input, without the batch axis."""
        return self.train[0][0].shape

    @property
    def num_outputs(self) -> int:
        """The number of model outputs: one per class, or one per regression target."""
        return self.num_classes if self.num_classes is not None else self.train[0][1].numel()


class DataSource(Protocol):
    """Anything with ``load``: the sources of this package, and any user class named by ``_target_``."""

    def load(self, seed: int) -> Splits:
        """Return the splits, the same ones for the same seed."""
        ...


def examples(splits: Splits) -> Tensor:
    """Return the inputs of the first training examples, up to 32: (examples, *input_shape).

    Raises:
        ConfigError: the training set is empty.
    """
    count = min(EXAMPLES, len(splits.train))  # type: ignore[arg-type]
    if not count:
        raise ConfigError("the training set is empty")
    return torch.stack([splits.train[index][0] for index in range(count)])


def _numbers(values: Tensor) -> Any:
    return values.item() if values.numel() == 1 else values.tolist()

"""The result of every data source: three datasets, and the input and output sizes that a model needs."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from pquant.errors import ConfigError

EXAMPLES = 32


@dataclass(frozen=True)
class Splits:
    """Training, validation and test sets of ``(input, target)`` pairs.

    Inputs are float32 without the batch axis; targets int64 class indices when ``num_classes`` is given, else float32 of shape ``(outputs,)``.
    In its own units such a target is ``target * target_scale + target_offset``.
    """

    train: Dataset[tuple[Tensor, ...]]
    validation: Dataset[tuple[Tensor, ...]]
    test: Dataset[tuple[Tensor, ...]]
    num_classes: int | None
    target_scale: float = 1.0
    target_offset: float = 0.0

    @property
    def units(self) -> dict[str, float]:
        """The scale and offset that turn a regression's outputs into the target's own units, by name; none for classes."""
        return {"target_scale": self.target_scale, "target_offset": self.target_offset} if self.num_classes is None else {}

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
        ConfigError: there are none.
    """
    count = min(EXAMPLES, len(splits.train))  # type: ignore[arg-type]
    if not count:
        raise ConfigError("the training set is empty")
    return torch.stack([splits.train[index][0] for index in range(count)])

"""Batches of a dataset. A dataset in memory needs no DataLoader."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset, default_collate

from pquant.data.augmentation import Augment

AT_ONCE = 16
"""The number of batches copied together, which is faster than one at a time."""


class Batches(Protocol):
    """An iterable of batches with a length; every iteration is a new pass over the data."""

    def __len__(self) -> int:
        """Return the number of batches."""
        ...

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield tuples of tensors whose first axis is the batch."""
        ...


@dataclass(frozen=True)
class TensorBatches:
    """Batches of whole tensors of equal length, copied by index on the tensors' own device."""

    tensors: tuple[Tensor, ...]
    batch_size: int
    generator: torch.Generator | None = None
    drop_last: bool = False

    def __len__(self) -> int:
        """Return the number of batches."""
        whole, left = divmod(len(self.tensors[0]), self.batch_size)
        return whole + (left > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches, in a new random order when there is a generator."""
        count = len(self.tensors[0])
        order = torch.arange(count) if self.generator is None else torch.randperm(count, generator=self.generator)
        wanted = order[: len(self) * self.batch_size].to(self.tensors[0].device)
        for rows in wanted.split(AT_ONCE * self.batch_size) if len(wanted) else ():
            yield from zip(*(tensor.index_select(0, rows).split(self.batch_size) for tensor in self.tensors), strict=True)


@dataclass(frozen=True)
class AugmentedBatches:
    """Batches whose inputs are augmented with random numbers from the generator that also draws the order."""

    batches: Batches
    augment: Augment
    generator: torch.Generator

    def __len__(self) -> int:
        """Return the number of batches."""
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield the batches."""
        for x, *others in self.batches:
            yield self.augment(x, self.generator), *others


def batches(dataset: Dataset[Any], batch_size: int, generator: torch.Generator | None = None, drop_last: bool = False) -> Batches:
    """Return batches of ``batch_size`` examples of ``dataset``; the last one may be smaller, unless ``drop_last``.

    Without ``generator`` the batches come in order. With a generator (on the CPU) each pass draws its order from it, so that its state is sufficient
    to resume.
    """
    if type(dataset) is TensorDataset:
        return TensorBatches(dataset.tensors, batch_size, generator, drop_last)
    shuffle, generator = generator is not None, generator or torch.Generator()
    return DataLoader(dataset, batch_size, shuffle=shuffle, generator=generator, drop_last=drop_last, collate_fn=_collate)


def _collate(examples: list[Any]) -> tuple[Tensor, ...]:
    return tuple(default_collate(examples))

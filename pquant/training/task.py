"""What a model is trained for: its loss and the metric that judges it."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from pquant.data.splits import Splits


class Task(Protocol):
    """A loss for training and a metric for people; ``score`` gives per-example terms whose mean :meth:`finish` turns into the metric."""

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        ...

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum over the batch of what the metric averages, a scalar."""
        ...

    def finish(self, mean: float) -> float:
        """Return the metric from the mean score."""
        ...


@dataclass(frozen=True)
class Classification:
    """Cross-entropy on class indices; accuracy."""

    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross-entropy of logits (batch, classes) and targets (batch,)."""
        return F.cross_entropy(output, target)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the number of right answers."""
        return (output.argmax(1) == target).sum()

    def finish(self, mean: float) -> float:
        """Return the accuracy."""
        return mean


@dataclass(frozen=True)
class Regression:
    """Mean squared error; its root, in the target's own units.

    Args:
        scale: of the target's units, by which the targets were divided.
    """

    metric: ClassVar[str] = "rmse"
    higher_is_better: ClassVar[bool] = False

    scale: float = 1.0

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error of (batch, outputs)."""
        return F.mse_loss(output, target)

    def score(self, output: Tensor, target: Tensor) -> Tensor:
        """Return the sum of the squared errors, averaged over the outputs."""
        return torch.square(output - target).flatten(1).mean(1).sum()

    def finish(self, mean: float) -> float:
        """Return the root mean squared error."""
        return mean**0.5 * self.scale


def task_for(splits: Splits) -> Task:
    """Return classification for data with classes, regression for data without."""
    return Regression(splits.target_scale) if splits.num_classes is None else Classification()

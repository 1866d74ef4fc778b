"""The task of a model: the loss that is minimized, and the metric that is reported."""

import copy
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pquant.data.batches import batches
from pquant.data.splits import Splits
from pquant.errors import ConfigError
from pquant.training.weighting import squared_error, weighted_mean


class Task(Protocol):
    """A loss and a metric. :meth:`finish` computes the metric from the mean of :meth:`score` over all examples.

    ``weight`` (batch,) are the weights of the examples, with mean 1 over their data set; None: all count the same.
    """

    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    def loss(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        ...

    def score(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the sum of the scores of the examples in a batch, a scalar."""
        ...

    def finish(self, mean: float) -> float:
        """Return the metric from the mean score."""
        ...


@dataclass(frozen=True)
class Classification:
    """Classification: the loss is the cross-entropy on class indices, the metric is the accuracy."""

    metric: ClassVar[str] = "accuracy"
    higher_is_better: ClassVar[bool] = True

    def loss(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean cross-entropy of logits (batch, classes) and targets (batch,)."""
        return F.cross_entropy(output, target) if weight is None else weighted_mean(F.cross_entropy(output, target, reduction="none"), weight)

    def score(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the number of correct predictions, or the sum of their weights."""
        right = output.argmax(1) == target
        return right.sum() if weight is None else (right * weight).sum()

    def finish(self, mean: float) -> float:
        """Return the accuracy."""
        return mean


@dataclass(frozen=True)
class Regression:
    """Regression: the loss is the mean squared error, the metric is its root in the units of the target.

    Args:
        scale: factor by which the targets were divided, in the units of the target.
    """

    metric: ClassVar[str] = "rmse"
    higher_is_better: ClassVar[bool] = False

    scale: float = 1.0

    def loss(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the mean squared error of (batch, outputs)."""
        return squared_error(output, target, weight)

    def score(self, output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the sum over examples of the squared error averaged over outputs, each times its weight if there are weights."""
        errors = torch.square(output - target).flatten(1).mean(1)
        return errors.sum() if weight is None else (errors * weight).sum()

    def finish(self, mean: float) -> float:
        """Return the root mean squared error."""
        return mean**0.5 * self.scale


def check_model(model: nn.Module, splits: Splits, task: Task) -> None:
    """Check that a model accepts the data, returns outputs of the right shape and can be trained.

    A copy of the model makes a forward and backward on two examples.

    Raises:
        ConfigError: the model does not accept the data, or its outputs have the wrong type or shape.
    """
    x, *target = next(iter(batches(splits.train, 2)))
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    needed = (len(x), splits.num_outputs)
    with torch.random.fork_rng(devices=[]):
        try:
            twin = copy.deepcopy(model)
            twin.train()
            output = twin(x.to(device))
            fits = isinstance(output, Tensor) and tuple(output.shape) == needed
            if fits:
                task.loss(output.float(), *(tensor.to(device) for tensor in target)).backward()
        except Exception as error:
            raise ConfigError(f"model: {type(model).__name__} does not take the data: {' '.join(str(error).split())[:300]}") from error
    if not fits:
        found = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ConfigError(f"model: {type(model).__name__} gives {found} for {len(x)} examples, the data needs {needed}")


def task_for(splits: Splits) -> Task:
    """Return classification for data with classes, regression for data without."""
    return Regression(splits.target_scale) if splits.num_classes is None else Classification()

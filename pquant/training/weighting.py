"""Means over a batch of weighted examples, whose weights have mean 1 over the data set."""

from torch import Tensor
from torch.nn import functional as F


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over a batch of values (batch, ...), each example times its ``weight`` (batch,), a scalar.

    The sum is divided by the number of examples, not by the sum of weights, so that the mean over all batches is the weighted mean of the data set.
    """
    return (values.flatten(1).mean(1) * weight if values.ndim > 1 else values * weight).mean()


def squared_error(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared error of (batch, ...), weighted if there are weights (batch,), a scalar."""
    return F.mse_loss(output, target) if weight is None else weighted_mean(F.mse_loss(output, target, reduction="none"), weight)

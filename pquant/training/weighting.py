"""Means over a batch whose examples may have weights of mean 1 over their data set."""

from torch import Tensor
from torch.nn import functional as F


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the mean over a batch of values (batch, ...), those of each example times its ``weight`` (batch,), a scalar.

    It is divided by the number of examples and not by the sum of the batch's weights, so that the mean over all batches is that of the data set.
    """
    return (values.flatten(1).mean(1) * weight if values.ndim > 1 else values * weight).mean()


def squared_error(output: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean squared error of (batch, ...), weighted if there are weights (batch,), a scalar."""
    return F.mse_loss(output, target) if weight is None else weighted_mean(F.mse_loss(output, target, reduction="none"), weight)

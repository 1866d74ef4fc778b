"""Functions of several pruning methods: shapes of thresholds, budgets of layers, and masks with exact counts."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from pquant.pruning.method import PrunedWeights

ThresholdType = Literal["channelwise", "layerwise", "weightwise"]


def threshold_shape(threshold_type: ThresholdType, weight: Tensor) -> tuple[int, ...]:
    """Return the shape of thresholds that broadcast with ``weight``: one per output channel, layer or weight."""
    if threshold_type == "weightwise":
        return tuple(weight.shape)
    return (weight.shape[0] if threshold_type == "channelwise" else 1,) + (1,) * (weight.ndim - 1)


def keep_largest(scores: Tensor, pruned: int) -> Tensor:
    """Return a mask in the shape of ``scores`` that drops exactly the ``pruned`` lowest, the last ones among equal scores."""
    flat = scores.flatten()
    if pruned <= 0 or pruned >= flat.numel():
        return torch.full_like(scores, pruned <= 0, dtype=torch.bool)
    return keep_above(flat, flat.kthvalue(pruned).values, flat.numel() - pruned).view_as(scores)


def keep_above(scores: Tensor, border: Tensor, kept: Tensor | int) -> Tensor:
    """Return a mask in the shape of ``scores`` that keeps scores above the border and, up to ``kept`` in all, the first scores equal to it."""
    above, ties = scores > border, scores == border
    return above | (ties & (ties.flatten().cumsum(0).view_as(ties) <= kept - above.sum()))


def keep_largest_by_row(scores: Tensor, pruned: Tensor) -> Tensor:
    """Return a mask in the shape of ``scores`` (rows, n) that drops the ``pruned[r]`` lowest of each row r; ``pruned`` is (rows,) or a scalar."""
    order = scores.argsort(dim=1, stable=True).argsort(dim=1)
    return order >= pruned.reshape(-1, 1)


def uniform_budget(layers: PrunedWeights, sparsity: float) -> dict[str, int]:
    """Return how many weights of each layer to prune if every layer has the given sparsity."""
    return {name: round(sparsity * weight.numel()) for name, (_, weight) in layers.items()}


def global_budget(layers: PrunedWeights, sparsity: float) -> dict[str, int]:
    """Return how many weights of each layer to prune if the smallest magnitudes over all layers are pruned.

    The counts add up to exactly ``round(sparsity * total)``.
    """
    magnitudes = {name: weight.detach().abs().flatten() for name, (_, weight) in layers.items()}
    total = round(sparsity * sum(one.numel() for one in magnitudes.values()))
    if total == 0:
        return dict.fromkeys(magnitudes, 0)
    border = torch.cat(list(magnitudes.values())).kthvalue(total).values
    counts = {name: int((one < border).sum()) for name, one in magnitudes.items()}
    return _add_ties(counts, {name: int((one == border).sum()) for name, one in magnitudes.items()}, total)


def _add_ties(counts: Mapping[str, int], ties: Mapping[str, int], total: int) -> dict[str, int]:
    missing, full = total - sum(counts.values()), dict(counts)
    for name, tied in ties.items():
        taken = min(missing, tied)
        full[name] += taken
        missing -= taken
    return full

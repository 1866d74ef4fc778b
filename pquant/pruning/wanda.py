"""Wanda: M. Sun, Z. Liu, A. Bair, Z. Kolter, "A Simple and Effective Pruning Approach for Large Language Models", ICLR 2024, arXiv 2306.11695."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pquant.errors import ConfigError
from pquant.pruning.masks import global_budget, keep_largest_by_row, uniform_budget
from pquant.pruning.method import PrunedWeights
from pquant.pruning.window import WindowMethod, WindowPruner
from pquant.settings import schema, setting
from pquant.training import distributed


class WandaPruner(WindowPruner):
    """Collects the energy of the inputs of a layer over the window, then prunes once.

    ``energy`` is the sum of squares of each input feature, (1, in) for a dense layer. For a convolution it is (out, in / groups), since each
    output channel has the inputs of its group.
    """

    collects = "input"
    state = (*WindowPruner.state, "budget")
    energy: Tensor

    def __init__(self, method: "Wanda", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: Wanda = method
        self.budget = round(method.sparsity * weight.numel())
        self.register_buffer("energy", weight.new_zeros((1, weight.shape[1]) if weight.ndim == 2 else weight.shape[:2]))

    @torch.no_grad()
    def observe(self, x: Tensor) -> None:
        """Add the energy of the input ``x``: (..., in) for a dense layer, (batch, in, *positions) for a convolution."""
        energy = distributed.total(self.sum_by_feature(x.square()))
        by_group = energy.view(-1, 1, self.energy.shape[1])
        self.energy.view(len(by_group), -1, self.energy.shape[1]).add_(by_group)
        self.seen.add_(1)

    def choose(self, weight: Tensor) -> Tensor:
        """Return the mask that drops the lowest |W_ij| * ||X_j|| in each output row (section 3 of the paper), or all but the N highest of every M."""
        norms = self.energy.sqrt().view(*self.energy.shape, *(1,) * (weight.ndim - 2))
        scores = weight.abs() * norms
        return self._keep_n_of_m(scores) if self.method.M else self._keep_by_row(scores)

    def _keep_by_row(self, scores: Tensor) -> Tensor:
        """Prune equal numbers of weights per row. A remainder of the budget goes to the rows whose next weight has the lowest score."""
        rows = scores.flatten(1)
        each, extra = divmod(self.budget, len(rows))
        counts = torch.full((len(rows),), each, device=rows.device)
        if extra:
            next_lowest = rows.kthvalue(each + 1, dim=1).values
            counts[next_lowest.topk(extra, largest=False).indices] += 1
        return keep_largest_by_row(rows, counts).view_as(scores)

    def _keep_n_of_m(self, scores: Tensor) -> Tensor:
        """Keep the N best of every M consecutive input channels."""
        n, m = self.method.N or 0, self.method.M or 1
        inputs_last = scores.movedim(1, -1)
        keep = keep_largest_by_row(inputs_last.reshape(-1, m), torch.tensor(m - n, device=scores.device))
        return keep.view(inputs_last.shape).movedim(-1, 1)


@schema("pruning", "wanda")
@dataclass(frozen=True)
class Wanda(WindowMethod):
    """One mask by the score |weight| times the norm of the input; training continues with this mask.

    Pretraining: off. Training: the pruner collects inputs over a window of steps, and then computes the mask once, from the ranking of the scores in
    each output row. A window that is longer than the train stage ends with it, and a warning says so. Fine-tuning: the same mask.

    Args:
        pruning_method: the method's name in the specification.
        M: number of consecutive inputs in a group, of which N weights remain; null: no groups.
        N: number of weights that remain of every M, as in "2:4"; ``sparsity`` then has no effect.
        sparsity: fraction of the weights that is pruned.
        t_delta: number of steps in which inputs are recorded.
        t_start_collecting_batch: number of steps of the train stage before the recording starts.
        calculate_pruning_budget: whether one magnitude threshold over all layers sets the sparsity of each layer; else all layers have the same
            sparsity.

    Raises:
        ConfigError: N without M, N > M, or (for a layer) inputs that M does not divide.
    """

    pruning_method: Literal["wanda"] = "wanda"
    M: int | None = setting(None, ge=1)
    N: int | None = setting(None, ge=1)
    sparsity: float = setting(0.9, ge=0, le=1)
    t_delta: int = setting(100, ge=1)
    t_start_collecting_batch: int = setting(100, ge=0)
    calculate_pruning_budget: bool = True

    def __post_init__(self) -> None:
        """Check the fields and that N and M belong together."""
        super().__post_init__()
        if (self.N is None) != (self.M is None):
            raise self.error("N", f"given together with M (M is {self.M})")
        if self.N is not None and self.M is not None and self.N > self.M:
            raise self.error("N", f"at most M = {self.M}")

    @property
    def goal(self) -> float:
        """The sparsity, which is 1 - N / M for N:M groups."""
        return self.sparsity if self.N is None or self.M is None else 1 - self.N / self.M

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> WandaPruner:
        """Return the pruner of ``weight``."""
        if self.M and weight.shape[1] % self.M:
            raise ConfigError(f"Wanda.M must divide the {weight.shape[1]} inputs of each row, got {self.M}")
        return WandaPruner(self, weight)

    def prepare(self, layers: PrunedWeights) -> None:
        """Set the number of weights to prune in each layer."""
        counts = (global_budget if self.calculate_pruning_budget else uniform_budget)(layers, self.sparsity)
        for name, (pruner, _) in layers.items():
            pruner.budget = counts[name]  # type: ignore[assignment]

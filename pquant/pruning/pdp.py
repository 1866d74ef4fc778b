"""PDP: M. Cho, S. Adya, D. Naik, "PDP: Parameter-free Differentiable Pruning is All You Need", NeurIPS 2023, arXiv 2305.11203."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pquant.pruning.masks import global_budget, keep_above
from pquant.pruning.method import PrunedWeights, PruningMethod
from pquant.pruning.schedule import ScheduledPruner, train_epochs
from pquant.settings import schema, setting
from pquant.training.stage import Horizon, Stage


class PDPPruner(ScheduledPruner):
    """The soft mask of one weight: m = sigmoid((v^2 - t^2) / tau) of the sizes v, those of weights or of output channels.

    ``budget`` is how many will be pruned, ``count`` how many are in this epoch. The border t lies halfway between the largest of them and
    the smallest of the others; ``border`` holds t^2 with the sign of t, which is infinite where nothing or everything is pruned, ``kept``
    how many stay, and ``tau`` the temperature. They are measured after each step.
    """

    state: ClassVar[tuple[str, ...]] = (*ScheduledPruner.state, "budget", "count")
    border: Tensor
    tau: Tensor
    kept: Tensor

    def __init__(self, method: "PDP", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: PDP = method
        self.budget, self.count = 0, 0
        self.register_buffer("border", weight.new_full((), -math.inf))
        self.register_buffer("tau", weight.new_full((), method.temperature))
        self.register_buffer("kept", torch.tensor(self.squares(weight.detach()).numel(), device=weight.device))

    def squares(self, weight: Tensor) -> Tensor:
        """Return v^2: W^2, or the squared L2 norms (out, 1, ...) of the output channels."""
        squares = weight.square()
        return squares.sum(tuple(range(1, weight.ndim)), keepdim=True) if self.method.structured_pruning else squares

    def soft_mask(self, weight: Tensor) -> Tensor:
        """Return m, which is 1/2 at the border."""
        return torch.sigmoid((self.squares(weight) - self.border) / self.tau)

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return m W."""
        return weight * self.soft_mask(weight)

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return a mask that drops the ``count`` smallest: what is below the border, and of what lies on it the last."""
        return keep_above(self.squares(weight), self.border, self.kept)

    def prune_bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """Return the bias (out,) masked as its channel is."""
        if not self.method.structured_pruning or self.stage is Stage.PRETRAIN:
            return bias
        mask = self.soft_mask(weight) if self.stage is Stage.TRAIN and self.training else self.hard_mask(weight)
        return bias * mask.flatten(1)[:, 0]

    def follow(self, epoch: int, horizon: Horizon) -> None:
        """Prune the share min(1, epsilon (e + 1)) of the budget in epoch e, and stay there after the last."""
        self.count = round(self.method.ramp(epoch, horizon) * self.budget)

    def start(self, budget: int, weight: Tensor) -> None:
        """Take the budget, and with it the mask of the first epoch."""
        self.budget = budget
        self._follow()
        self.measure(weight)

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Take border and temperature for ``weight``."""
        squares = self.squares(weight).flatten()
        self.kept.fill_(squares.numel() - self.count)
        if self.method.temperature_scale == "relative":
            self.tau.copy_(squares.mean() * self.method.temperature).clamp_(min=torch.finfo(squares.dtype).tiny)
        if 0 < self.count < squares.numel():
            below, above = squares.kthvalue(self.count).values, squares.kthvalue(self.count + 1).values
            self.border.copy_(((below.sqrt() + above.sqrt()) / 2).square())
        else:
            self.border.fill_(math.inf if self.count else -math.inf)

    def on_batch_end(self, weight: Tensor) -> None:
        """Follow the weights."""
        if self.stage is Stage.TRAIN:
            self.measure(weight)

    def on_epoch_end(self, weight: Tensor, loss: float | None = None) -> None:
        """Follow the ramp."""
        super().on_epoch_end(weight)
        self.on_batch_end(weight)

    def on_round_end(self, weight: Tensor) -> None:
        """Follow the weights where they were put back."""
        self.on_batch_end(weight)


@schema("pruning", "pdp")
@dataclass(frozen=True)
class PDP(PruningMethod):
    """A soft magnitude mask without parameters that ends at exactly the sparsity asked for.

    Pretraining: off, but needed, as it gives the magnitudes. Training: one magnitude threshold over all layers that take part shares ``sparsity``
    out to them, once; in epoch e of the stage, all rounds together, a layer prunes the share min(1, epsilon (e + 1)) of its part by the mask
    m = sigmoid((W^2 - t^2) / tau), t halfway between the largest pruned |W| and the smallest kept. Evaluation and fine-tuning: the hard mask.

    Args:
        pruning_method: the method's name in the specification.
        epsilon: growth of the pruned fraction of a layer per epoch, relative to its final fraction; "auto": reaches the end at two thirds of the
            train stage. A warning says if the train stage is too short for the given value.
        sparsity: share of zeros, or of pruned channels with ``structured_pruning``.
        temperature: tau, in units of squared weights.
        structured_pruning: whether whole output channels are pruned by their L2 norm, with their bias. Each layer keeps at least one channel, and the
            output layer keeps all.
        temperature_scale: "relative": tau is ``temperature`` times the mean W^2 of the layer.
    """

    pruning_method: Literal["pdp"] = "pdp"
    epsilon: float | Literal["auto"] = setting(0.015, gt=0)
    sparsity: float = setting(0.8, ge=0, le=1)
    temperature: float = setting(1.0e-05, gt=0)
    structured_pruning: bool = False
    temperature_scale: Literal["absolute", "relative"] = "absolute"

    @property
    def goal(self) -> float | None:
        """The sparsity; None if whole channels are pruned, which differ in size."""
        return None if self.structured_pruning else self.sparsity

    def ramp(self, epoch: int, horizon: Horizon) -> float:
        """Return the share of the budget that is pruned in ``epoch``, from 0, of the train stage."""
        epochs = max(train_epochs(horizon), 1)
        step = 1 / max(round(epochs * 2 / 3), 1) if self.epsilon == "auto" else self.epsilon
        return min(1.0, step * (min(epoch, epochs - 1) + 1))

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> PDPPruner:
        """Return the soft mask of ``weight``."""
        return PDPPruner(self, weight)

    def prepare(self, layers: PrunedWeights) -> None:
        """Give each layer its part of the sparsity."""
        counts = self._channels(layers) if self.structured_pruning else global_budget(layers, self.sparsity)
        for name, (pruner, weight) in layers.items():
            pruner.start(counts.get(name, 0), weight)  # type: ignore[operator]

    def _channels(self, layers: PrunedWeights) -> dict[str, int]:
        """Return how many channels each layer loses: those of least norm, but never the strongest of a layer."""
        pruners = {name: (pruner, weight) for name, (pruner, weight) in layers.items() if not pruner.makes_output}
        norms = {name: pruner.squares(weight.detach()).flatten().sqrt() for name, (pruner, weight) in pruners.items()}  # type: ignore[operator]
        weaker = {name: (pruners[name][0], norm.topk(len(norm) - 1, largest=False).values) for name, norm in norms.items()}
        total = sum(map(len, norms.values()))
        return global_budget(weaker, min(self.sparsity * total / max(total - len(norms), 1), 1.0))

    def warnings(self, horizon: Horizon) -> list[str]:
        """Warn where the ramp ends after training does."""
        epochs = train_epochs(horizon)
        share = self.ramp(epochs - 1, horizon)
        if math.isclose(share, 1):
            return []
        return [
            f"PDP.epsilon = {self.epsilon} prunes {100 * share * self.sparsity:.1f} % within the {epochs} training epochs, not the"
            f" {100 * self.sparsity:.1f} % asked for; {math.ceil(1.5e4 / epochs) / 1e4:g} or 'auto' would"
        ]

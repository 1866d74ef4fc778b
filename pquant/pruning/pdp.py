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
    """The soft mask m = sigmoid((v^2 - t^2) / tau) of one weight tensor, where v are the sizes of its weights or output channels.

    ``budget`` is the number to prune in the end, and ``count`` the number to prune in this epoch. The border t lies halfway between the largest
    pruned size and the smallest kept size. The buffer ``border`` is t^2, or minus infinity where nothing and infinity where everything is pruned;
    ``kept`` is the number that stays, and ``tau`` the temperature. All three are updated after each step.
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
        """Return m, in the shape of :meth:`squares`; it is 1/2 at the border."""
        return torch.sigmoid((self.squares(weight) - self.border) / self.tau)

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return m W."""
        return weight * self.soft_mask(weight)

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return a mask that drops the ``count`` smallest sizes, the last ones among equal sizes."""
        return keep_above(self.squares(weight), self.border, self.kept)

    def prune_bias(self, bias: Tensor, weight: Tensor) -> Tensor:
        """Return the bias (out,), multiplied by the mask of its channel if whole channels are pruned."""
        if not self.method.structured_pruning or self.stage is Stage.PRETRAIN:
            return bias
        mask = self.soft_mask(weight) if self.stage is Stage.TRAIN and self.training else self.hard_mask(weight)
        return bias * mask.flatten(1)[:, 0]

    def follow(self, epoch: int, horizon: Horizon) -> None:
        """Set ``count`` to the fraction min(1, epsilon (e + 1)) of the budget in epoch e."""
        self.count = round(self.method.ramp(epoch, horizon) * self.budget)

    def start(self, budget: int, weight: Tensor) -> None:
        """Set the budget, and compute the mask of the first epoch."""
        self.budget = budget
        self._follow()
        self.measure(weight)

    @torch.no_grad()
    def measure(self, weight: Tensor) -> None:
        """Compute border and temperature for ``weight``."""
        squares = self.squares(weight).flatten()
        self.kept.fill_(squares.numel() - self.count)
        if self.method.temperature_scale == "relative":
            self.tau.copy_(squares.mean() * self.method.temperature).clamp_(min=torch.finfo(squares.dtype).tiny)
        if 0 < self.count < squares.numel():
            below, above = squares.kthvalue(self.count).values, squares.kthvalue(self.count + 1).values
            halfway = ((below.sqrt() + above.sqrt()) / 2).square()
            self.border.copy_(halfway.clamp(below, above))
        else:
            self.border.fill_(math.inf if self.count else -math.inf)

    def on_batch_end(self, weight: Tensor) -> None:
        """Update border and temperature after a step of the train stage."""
        if self.stage is Stage.TRAIN:
            self.measure(weight)

    def on_epoch_end(self, weight: Tensor, loss: float | None = None) -> None:
        """Go to the next epoch of the ramp, and update border and temperature."""
        super().on_epoch_end(weight)
        self.on_batch_end(weight)

    def on_round_end(self, weight: Tensor) -> None:
        """Update border and temperature, since the weights may have been rewound."""
        self.on_batch_end(weight)


@schema("pruning", "pdp")
@dataclass(frozen=True)
class PDP(PruningMethod):
    """A soft magnitude mask without trained parameters that ends at exactly the given sparsity.

    Pretraining: off, but needed, since the method prunes by the magnitudes of pretrained weights. Training: at the start, one magnitude threshold
    over all pruned layers determines how many weights each layer loses. In epoch e of the train stage, counted over all rounds, a layer prunes the
    fraction min(1, epsilon (e + 1)) of this number with the mask m = sigmoid((W^2 - t^2) / tau), where t lies halfway between the largest pruned |W|
    and the smallest kept |W|. Evaluation and fine-tuning: the mask of 0 and 1.

    Args:
        pruning_method: the method's name in the specification.
        epsilon: growth of the pruned fraction of a layer per epoch, relative to its final fraction; "auto": reaches the end at two thirds of the
            train stage. A warning says if the train stage is too short for the given value.
        sparsity: fraction of the weights that is pruned, or of the channels with ``structured_pruning``.
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
        """The sparsity; None if whole channels are pruned, since they differ in size."""
        return None if self.structured_pruning else self.sparsity

    def ramp(self, epoch: int, horizon: Horizon) -> float:
        """Return the fraction of the budget that is pruned in ``epoch`` of the train stage; epochs count from 0."""
        epochs = max(train_epochs(horizon), 1)
        step = 1 / max(round(epochs * 2 / 3), 1) if self.epsilon == "auto" else self.epsilon
        return min(1.0, step * (min(epoch, epochs - 1) + 1))

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> PDPPruner:
        """Return the pruner of ``weight``."""
        return PDPPruner(self, weight)

    def prepare(self, layers: PrunedWeights) -> None:
        """Set the budget of each layer."""
        counts = self._channels(layers) if self.structured_pruning else global_budget(layers, self.sparsity)
        for name, (pruner, weight) in layers.items():
            pruner.start(counts.get(name, 0), weight)  # type: ignore[operator]

    def _channels(self, layers: PrunedWeights) -> dict[str, int]:
        """Return how many channels each layer loses: those of smallest norm, except the channel of largest norm in each layer."""
        pruners = {name: (pruner, weight) for name, (pruner, weight) in layers.items() if not pruner.makes_output}
        norms = {name: pruner.squares(weight.detach()).flatten().sqrt() for name, (pruner, weight) in pruners.items()}  # type: ignore[operator]
        weaker = {name: (pruners[name][0], norm.topk(len(norm) - 1, largest=False).values) for name, norm in norms.items()}
        total = sum(map(len, norms.values()))
        return global_budget(weaker, min(self.sparsity * total / max(total - len(norms), 1), 1.0))

    def warnings(self, horizon: Horizon) -> list[str]:
        """Warn if the train stage ends before the ramp."""
        epochs = train_epochs(horizon)
        share = self.ramp(epochs - 1, horizon)
        if math.isclose(share, 1):
            return []
        return [
            f"PDP.epsilon = {self.epsilon} prunes {100 * share * self.sparsity:.1f} % within the {epochs} training epochs, not the"
            f" {100 * self.sparsity:.1f} % of PDP.sparsity; use {math.ceil(1.5e4 / epochs) / 1e4:g} or 'auto'"
        ]

"""AutoSparse: A. Kundu, N. Mellempudi, D. Vooturi, B. Kaul, P. Dubey, "AutoSparse: Towards Automated Sparse Training", 2023, arXiv 2304.06941.

The soft threshold is that of STR: A. Kusupati et al., ICML 2020, arXiv 2002.03231.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pquant.pruning.masks import ThresholdType, keep_largest, threshold_shape
from pquant.pruning.method import PruningMethod
from pquant.pruning.schedule import ScheduledPruner, train_epochs
from pquant.settings import schema, setting
from pquant.training.stage import Horizon, Stage

AUTOTUNE_STEP = 0.05
"""Change of alpha0 in one epoch of autotuning."""


class AutoSparsePruner(ScheduledPruner):
    """Trainable threshold logits s of one weight tensor (one per channel, layer or weight), and the gradient scale ``alpha`` of this epoch.

    ``alpha0`` is the initial value of alpha, which autotuning changes. ``losses`` are the losses of the pretraining epochs, which autotuning
    extrapolates.
    """

    state: ClassVar[tuple[str, ...]] = (*ScheduledPruner.state, "alpha0", "losses")
    alpha: Tensor

    def __init__(self, method: "AutoSparse", weight: Tensor) -> None:
        super().__init__(method, weight)
        self.method: AutoSparse = method
        self.optimizer_options = {"weight_decay": method.threshold_decay}
        self.threshold = nn.Parameter(weight.new_full(threshold_shape(method.threshold_type, weight), method.threshold_init))
        self.register_buffer("alpha", weight.new_full((), method.alpha))
        self.alpha0 = method.alpha
        self.losses: tuple[float, ...] = ()

    def train_weight(self, weight: Tensor) -> Tensor:
        """Return sign(W) relu(u) with u = |W| - sigmoid(s). The gradients of W and s are multiplied by alpha where u <= 0.

        With ``backward_sparsity`` the gradient is 0 for the half of the weights with the lowest u.
        """
        threshold = self.threshold.sigmoid()
        u, shrunken = (weight.abs() - threshold).detach(), weight - weight.sign() * threshold
        if self.method.backward_sparsity:
            shrunken = torch.where(keep_largest(u, u.numel() // 2), shrunken, shrunken.detach())
        return torch.where(u > 0, shrunken, self.alpha * (shrunken - shrunken.detach()))

    def train_mask(self, weight: Tensor) -> Tensor:
        """Return |W| > sigmoid(s)."""
        return weight.abs() > self.threshold.sigmoid()

    def fold(self, weight: Tensor) -> Tensor:
        """Return sign(W) relu(|W| - sigmoid(s)): the remaining weights keep the shrunken values of training."""
        return self.train_weight(weight)

    def follow(self, epoch: int, horizon: Horizon) -> None:
        """Set alpha = alpha0 * max((1 + cos(pi x)) / 2, sigmoid(6 - 12 x)) at x = e / T; 0 from ``alpha_reset_epoch`` on."""
        x = min(epoch / max(train_epochs(horizon), 1), 1.0)
        decay = max((1 + math.cos(math.pi * x)) / 2, 1 / (1 + math.exp(12 * x - 6)))
        self.alpha.fill_(self.alpha0 * decay if epoch < self.method.alpha_reset_epoch else 0.0)

    def on_epoch_end(self, weight: Tensor, loss: float | None = None) -> None:
        """Record the loss of a pretraining epoch; in the first epochs of the train stage, change alpha0 by the loss."""
        if self.stage is Stage.PRETRAIN and loss is not None:
            self.losses = (*self.losses, loss)
        if self.stage is Stage.TRAIN and self.epoch < self.method.autotune_epochs:
            self._tune(loss)
        super().on_epoch_end(weight)

    def _tune(self, loss: float | None) -> None:
        if loss is None:
            warnings.warn("AutoSparse.autotune_epochs has no effect without the training loss: call pquant.on_epoch_end(model, loss)", stacklevel=2)
            return
        self.losses = self.losses or (loss,)
        step = AUTOTUNE_STEP if loss > expected(self.losses, self.epoch + 1) else -AUTOTUNE_STEP
        self.alpha0 = min(max(self.alpha0 + step, 0.0), 1.0)


def expected(losses: Sequence[float], ahead: int) -> float:
    """Return the loss expected ``ahead`` epochs after ``losses``, from a fit of a power law in the number of the epoch.

    Where no power law can be fitted (a single loss, or a loss that is not positive), return the last loss.
    """
    if len(losses) < 2 or min(losses) <= 0:
        return losses[-1]
    slope, offset = linear_regression([math.log(n + 1) for n in range(len(losses))], [math.log(loss) for loss in losses])
    return math.exp(offset + slope * math.log(len(losses) + ahead))


@schema("pruning", "autosparse")
@dataclass(frozen=True)
class AutoSparse(PruningMethod):
    """Trained soft thresholds; the gradient of pruned weights is scaled by a factor that is annealed to 0.

    Pretraining: off. Training: W_eff = sign(W) relu(|W| - sigmoid(s)); the gradient of a pruned weight is multiplied by a factor that falls from
    ``alpha`` to 0 over all epochs of the train stage. Fine-tuning: the mask is frozen, and the shrunken weights are folded into the parameter. There
    is no auxiliary loss and no target. A smaller ``alpha``, a larger ``threshold_init`` or a larger ``threshold_decay`` gives a higher sparsity.
    Since sigmoid(s) < 1, weights with |W| > 1 are never pruned.

    Args:
        pruning_method: the method's name in the specification.
        alpha: factor of the gradient of pruned weights at the start of the train stage.
        alpha_reset_epoch: epoch of the train stage from which this factor is 0.
        autotune_epochs: number of first epochs of the train stage after each of which the initial alpha changes by 0.05 within [0, 1]: it rises if
            the training loss is worse than a power law fitted to the losses of pretraining, else it falls. Without pretraining, the loss of the first
            epoch of the train stage is used instead. Your own training loop must pass the loss: ``pquant.on_epoch_end(model, loss)``.
        backward_sparsity: whether the half of a layer's weights with the lowest |W| - sigmoid(s) gets no gradient, even if less than half is
            pruned.
        threshold_init: initial value of s, whose sigmoid is the threshold.
        threshold_type: which weights share a threshold: those of a channel, those of a layer, or each weight has its own.
        threshold_decay: weight decay of s, which pulls sigmoid(s) towards 1/2.
    """

    decays_thresholds: ClassVar[bool] = True
    rescales: ClassVar[bool] = True

    pruning_method: Literal["autosparse"] = "autosparse"
    alpha: float = setting(0.5, ge=0, le=1)
    alpha_reset_epoch: int = setting(90, ge=0)
    autotune_epochs: int = setting(10, ge=0)
    backward_sparsity: bool = False
    threshold_init: float = -5.0
    threshold_type: ThresholdType = "channelwise"

    def pruner(self, weight: Tensor, layer_type: type[nn.Module]) -> AutoSparsePruner:
        """Return the pruner of ``weight``."""
        return AutoSparsePruner(self, weight)

    def warnings(self, horizon: Horizon) -> list[str]:
        """Warn if alpha is not reset within the train stage, or is tuned in all its epochs."""
        epochs, found = train_epochs(horizon), []
        if self.alpha_reset_epoch >= epochs:
            found.append(
                f"AutoSparse.alpha_reset_epoch = {self.alpha_reset_epoch} is beyond the {epochs} training epochs: pruned weights get a gradient until"
                f" the end, so the mask keeps changing; with {max(epochs * 9 // 10, 1)} it is stable in the last tenth of the epochs"
            )
        if self.autotune_epochs >= epochs:
            found.append(f"AutoSparse.autotune_epochs = {self.autotune_epochs} covers all {epochs} training epochs; {epochs // 5} epochs are enough")
        return found

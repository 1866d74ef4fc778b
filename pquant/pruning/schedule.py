"""What methods share whose values follow a schedule over the epochs of the train stage."""

from typing import ClassVar

from torch import Tensor

from pquant.pruning.method import Pruner, PruningMethod
from pquant.training.stage import Horizon, Stage


class ScheduledPruner(Pruner):
    """Counts the complete epochs of the train stage in ``epoch`` and asks the method to ``follow`` at the start of each.

    Pretraining and fine-tuning move nothing.
    """

    state: ClassVar[tuple[str, ...]] = ("epoch",)

    def __init__(self, method: PruningMethod, weight: Tensor) -> None:
        super().__init__(method, weight)
        self.epoch = 0

    def follow(self, epoch: int, horizon: Horizon) -> None:
        """Set what holds in ``epoch``, from 0: 0-dim buffers, so that a compiled step stays what it is. After the last epoch it is one beyond."""
        raise NotImplementedError

    def on_stage_start(self, stage: Stage, horizon: Horizon | None = None) -> None:
        """Enter a stage.

        Raises:
            RuntimeError: training starts and nobody has said how long it will last.
        """
        if stage is Stage.TRAIN and not (horizon or self.horizon):
            name = type(self.method).__name__
            raise RuntimeError(f"{name} must know how long training lasts: set_stage(model, Stage.TRAIN, Horizon(epochs, steps_per_epoch))")
        super().on_stage_start(stage, horizon)
        self._follow()

    def on_epoch_end(self, weight: Tensor, loss: float | None = None) -> None:
        """Count an epoch of the train stage."""
        if self.stage is Stage.TRAIN:
            self.epoch += 1
            self._follow()

    def _follow(self) -> None:
        if self.stage is Stage.TRAIN and self.horizon:
            self.follow(self.epoch, self.horizon)


def train_epochs(horizon: Horizon) -> int:
    """Return the epochs of the whole train stage, all rounds together."""
    return horizon.rounds * horizon.epochs

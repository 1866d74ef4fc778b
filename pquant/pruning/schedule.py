"""The base class of pruners with a schedule over the epochs of the train stage."""

from typing import ClassVar

from torch import Tensor

from pquant.pruning.method import Pruner, PruningMethod
from pquant.training.stage import Horizon, Stage


class ScheduledPruner(Pruner):
    """Counts the complete epochs of the train stage in ``epoch``, and calls ``follow`` at the start of each epoch.

    The count does not change in pretraining and fine-tuning.
    """

    state: ClassVar[tuple[str, ...]] = ("epoch",)

    def __init__(self, method: PruningMethod, weight: Tensor) -> None:
        super().__init__(method, weight)
        self.epoch = 0

    def follow(self, epoch: int, horizon: Horizon) -> None:
        """Set the values for ``epoch``, which counts from 0; after the last epoch it is the number of epochs.

        Scalar buffers hold the values, so that a compiled step need not be compiled again."""
        raise NotImplementedError

    def on_stage_start(self, stage: Stage, horizon: Horizon | None = None) -> None:
        """Start a stage.

        Raises:
            RuntimeError: the train stage starts without a ``horizon``.
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
    """Return the number of epochs of the train stage, over all rounds."""
    return horizon.rounds * horizon.epochs

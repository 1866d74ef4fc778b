"""The stages of a run and how long they last."""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """The stage of a run: without pruning (pretrain), with pruning (train), or with frozen masks (finetune)."""

    PRETRAIN = "pretrain"
    TRAIN = "train"
    FINETUNE = "finetune"


@dataclass(frozen=True)
class Horizon:
    """The length of the train stage: ``rounds`` times ``epochs`` of ``steps_per_epoch`` optimizer steps."""

    epochs: int
    steps_per_epoch: int
    rounds: int = 1

    @property
    def steps(self) -> int:
        """Number of optimizer steps of the train stage, over all rounds."""
        return self.rounds * self.epochs * self.steps_per_epoch

"""The stages of a run and how long they last."""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """What pruning does now: nothing (pretrain), its work (train), or keep the frozen mask (finetune)."""

    PRETRAIN = "pretrain"
    TRAIN = "train"
    FINETUNE = "finetune"


@dataclass(frozen=True)
class Horizon:
    """How long the train stage lasts: ``rounds`` times ``epochs`` of ``steps_per_epoch`` optimizer steps."""

    epochs: int
    steps_per_epoch: int
    rounds: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole train stage, all rounds together."""
        return self.rounds * self.epochs * self.steps_per_epoch

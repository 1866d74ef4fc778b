"""The list of all epochs of a run. A run can stop after any of them and resume."""

from dataclasses import dataclass

from pquant.training.stage import Stage
from pquant.training.training import Training


@dataclass(frozen=True)
class Epoch:
    """One epoch of the plan: ``index`` counts within its stage and round, ``number`` over the whole run from 1.

    ``evaluated`` says whether the model is evaluated, and its state saved, after this epoch.
    """

    stage: Stage
    round: int
    index: int
    number: int
    ends_round: bool
    evaluated: bool = True


def plan(training: Training) -> list[Epoch]:
    """Return all epochs of a run in order."""
    stages = [(Stage.PRETRAIN, 0, training.pretraining_epochs)]
    stages += [(Stage.TRAIN, index, training.epochs) for index in range(training.rounds)]
    stages += [(Stage.FINETUNE, 0, training.fine_tuning_epochs)]
    steps = [(stage, round_, index, index == length - 1) for stage, round_, length in stages for index in range(length)]
    following = [stage for stage, *_ in steps[1:]]
    return [
        Epoch(stage, round_, index, number, ends, number % training.evaluate_every == 0 or following[number - 1 : number] != [stage])
        for number, (stage, round_, index, ends) in enumerate(steps, 1)
    ]

"""What a job is to a study, and a job that belongs to none."""

from collections.abc import Callable
from typing import Any, Protocol

from pquant.finetuning.objectives import validation_metric

Row = dict[str, Any]
"""The metrics of one epoch."""
Work = Callable[[Callable[[Row], None], bool], dict[str, Any]]
"""Trains and evaluates. Arguments: a callback that gets every epoch's row, and whether to resume from the last checkpoint. Returns the summary's
metrics."""


class Job(Protocol):
    """What a study asks of a job."""

    def conduct(self, work: Work) -> list[float] | float | None:
        """Do the work; return the values that are optimized."""
        ...


class SingleRun:
    """A job that is not a trial."""

    def conduct(self, work: Work) -> float | None:
        """Do the work; return the validation metric."""
        return validation_metric(work(lambda row: None, False))

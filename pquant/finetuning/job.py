"""The interface between a job and a study, and the job of a single run."""

from collections.abc import Callable
from typing import Any, Protocol

from pquant.finetuning.objectives import validation_metric

Row = dict[str, Any]
"""The metrics of one epoch."""
Work = Callable[[Callable[[Row], None], bool], dict[str, Any]]
"""Trains and evaluates. Arguments: a callback that gets every epoch's row, and whether to resume from the last checkpoint. Returns the summary's
metrics."""


class Job(Protocol):
    """The interface of a job."""

    def conduct(self, work: Work) -> list[float] | float | None:
        """Run ``work``; return the values of the objectives."""
        ...


class SingleRun:
    """A job that is not a trial."""

    def conduct(self, work: Work) -> float | None:
        """Run ``work``; return the validation metric, or None without one."""
        return validation_metric(work(lambda row: None, False))

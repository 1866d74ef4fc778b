"""The base class of data sources for your own files, whose task is determined by the targets."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from pquant.data.columns import Task, encode
from pquant.data.splitting import Array, Weighted
from pquant.errors import ConfigError

log = logging.getLogger(__name__)

NAMED = 10


@dataclass(frozen=True)
class LabelledFile(Weighted):
    """The settings of a file with inputs and targets.

    Args:
        path: the file.
        target: the name of the targets; null, with ``reconstruct``: there are none.
        task: "auto": strings, booleans and integers of up to 100 values are classes; other targets are a regression.
    """

    path: str = ""
    target: str | None = "y"
    task: Task = "auto"

    def __post_init__(self) -> None:
        """Check the fields, and that the target is not also the weight."""
        super().__post_init__()
        if self.weight is not None and self.weight == self.target:
            raise self.error("weight", "another column than data.target")

    def require(self, kind: str) -> None:
        """Raise a ConfigError without a path, which must be of that ``kind``, or without a target or ``reconstruct``."""
        if not self.path:
            raise self.error("path", f"the path of {kind}")
        if self.target is None and not self.reconstruct:
            raise self.error("target", "the name of a column, or data.reconstruct=true")

    def encoded(self, y: Array, inputs: int) -> tuple[Array, Sequence[str] | None]:
        """Return targets (N,) or (N, outputs) as the numbers that :meth:`split` takes, and the names of the classes, if any; log the task.

        Args:
            y: targets as in the file.
            inputs: number of values of an input.

        Raises:
            ConfigError: missing values, a single class, a regression on values that are not numbers, or several outputs that may be classes.
        """
        if self.target is None:
            log.info("reconstruction of %d features", inputs)
            return y, None
        if y.ndim > 1:
            return self._outputs(y), None
        codes, classes = encode(y, self.task, self.target)
        if self.reconstruct:
            log.info("reconstruction of %d features", inputs)
        elif classes:
            more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
            log.info("classification of '%s', %d classes: %s%s", self.target, len(classes), ", ".join(classes[:NAMED]), more)
        else:
            log.info("regression of '%s', mean %.4g, deviation %.4g", self.target, codes.mean(), codes.std())
        return codes, classes

    def _outputs(self, y: Array) -> Array:
        """Return the targets (N, outputs) of a regression as float64."""
        if self.task == "classification" or self.task == "auto" and y.dtype.kind != "f":
            advice = "classes must be one label per example, (N,); data.task=regression reads them as numbers"
            raise ConfigError(f"{self.path}: target '{self.target}' is {y.dtype} {y.shape}: {advice}")
        values, _ = encode(y.reshape(-1), "regression", str(self.target))
        log.info("regression of the %d columns of '%s'", y.shape[1], self.target)
        return values.reshape(y.shape)

"""Any table with a target column."""

import logging
from dataclasses import dataclass

from pquant.data.columns import Choice, Missing, Task, encode, read_columns
from pquant.data.files import FILES
from pquant.data.splits import Splits
from pquant.data.splitting import Fractions
from pquant.settings import schema, setting

log = logging.getLogger(__name__)

NAMED = 10


@schema("data", "table")
@dataclass(frozen=True)
class Table(Fractions):
    """A csv, tsv, parquet or npz file; every column but ``target`` is a feature. Classes are numbered by their sorted names.

    Args:
        path: the file; csv and tsv also compressed, as in ``a.csv.gz``. An npz file has features ``x`` (N, F) and targets (N,) under the name
            ``target``, or ``x_train``, ``y_train``, ``x_test`` and ``y_test`` (for the target ``y``) with the test set that is then used; and, if
            the features have names, ``features`` (F,).
        target: the column to predict; null, with ``reconstruct``: all columns are features.
        features: the columns that are features, in this order; null for all but the target.
        drop: columns that are not used, such as event numbers.
        missing: what to do with missing values of features: "error"; "drop": leave out their rows; "mean": replace them by the mean of the training
            rows.
        task: "auto": strings, booleans and integers of up to 100 values are classes; other targets are a regression.
    """

    path: str = ""
    target: str | None = "y"
    task: Task = "auto"
    features: list[str] | None = None
    drop: list[str] = setting([])
    missing: Missing = "error"

    @property
    def fills(self) -> bool:
        """Whether missing values are replaced."""
        return self.missing == "mean"

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: no such file, target or feature, features that are not finite numbers, or too few examples.
        """
        if not self.path:
            raise self.error("path", f"the path of a {FILES}")
        if self.target is None and not self.reconstruct:
            raise self.error("target", "the name of a column, or data.reconstruct=true")
        columns = read_columns(self.path, self.target, Choice(self.features, self.drop, self.missing))
        y, classes = (columns.y, None) if self.target is None else encode(columns.y, self.task, self.target)
        if self.reconstruct:
            log.info("reconstruction of %d features", columns.x.shape[1])
        elif classes:
            more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
            log.info("classification of '%s', %d classes: %s%s", self.target, len(classes), ", ".join(classes[:NAMED]), more)
        else:
            log.info("regression of '%s', mean %.4g, deviation %.4g", self.target, y.mean(), y.std())
        return self.split(columns.x, y, seed, classes, columns.test_rows, columns.names)

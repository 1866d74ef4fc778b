"""The data source for tables with a target column."""

from dataclasses import dataclass

from pquant.data.columns import Choice, Missing, read_columns
from pquant.data.files import FILES
from pquant.data.labelled import LabelledFile
from pquant.data.splits import Splits
from pquant.settings import schema, setting


@schema("data", "table")
@dataclass(frozen=True)
class Table(LabelledFile):
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
    """

    features: list[str] | None = None
    drop: list[str] = setting([])
    missing: Missing = "error"

    def __post_init__(self) -> None:
        """Check the fields, and that the column of weights is not a feature."""
        super().__post_init__()
        if self.weight is not None and self.weight in (*(self.features or ()), *self.drop):
            raise self.error("weight", "a column that data.features and data.drop do not name")

    @property
    def fills(self) -> bool:
        """Whether missing values are replaced."""
        return self.missing == "mean"

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: no such file, target or feature, features that are not finite numbers, or too few examples.
        """
        self.require(f"a {FILES}")
        columns = read_columns(self.path, self.target, Choice(self.features, self.drop, self.missing, self.weight))
        y, classes = self.encoded(columns.y, columns.x.shape[1])
        return self.split(columns.x, y, seed, classes, columns.test_rows, columns.names, columns.weight)

"""The data source of the LHC jet benchmark: classify jets by the particle that produced them, from their substructure."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from pquant.data.columns import Choice, encode, read_columns
from pquant.data.files import CACHE, expanded, file_kind, no_download, save_npz
from pquant.data.splits import Splits
from pquant.data.splitting import Array, Weighted
from pquant.errors import ConfigError
from pquant.settings import schema

OPENML_ID = 42468
FEATURES, CLASSES = 16, 5
LOCAL_COPY = "csv or parquet with 16 features and a column 'class', or npz with x (N, 16) and y (N,)"


@schema("data", "jets")
@dataclass(frozen=True)
class Jets(Weighted):
    """830,000 simulated jets, 16 high-level features, 5 classes: g, q, t, w, z.

    J. Duarte et al., "Fast inference of deep neural networks in FPGAs for particle physics", 2018, arXiv 1804.06913. OpenML has them as
    ``hls4ml_lhc_jets_hlf``, id 42468.

    Args:
        path: a csv, tsv or parquet file with a column "class", or an npz file with ``x`` and ``y`` and, if they have names, ``features``;
            null: fetched from OpenML.
        root: the folder of the downloaded file.
    """

    path: str | None = None
    root: str = CACHE

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: the table can be neither read nor downloaded, or is not the table of this data set.
        """
        path = self.path or str(self._downloaded())
        target = "y" if file_kind(path) == ".npz" else "class"
        columns = read_columns(path, target, Choice(weight=self.weight))
        y, classes = encode(columns.y, "classification", target)
        _require_jets(path, columns.x, classes or [])
        return self.split(columns.x, y, seed, classes, columns.test_rows, columns.names, columns.weight)

    def _downloaded(self) -> Path:
        """Return the file in ``root``; download it if it does not exist."""
        path = expanded(self.root, "data.root") / "hls4ml_lhc_jets_hlf.npz"
        if not path.exists():
            try:
                x, y, names = _fetched()
                _require_jets("what OpenML gave", x, sorted(set(y)))
                save_npz(path, x=x, y=y, features=names)
            except Exception as error:
                raise no_download(f"OpenML data set {OPENML_ID}", error, self.root, LOCAL_COPY) from error
        return path


def _fetched() -> tuple[Array, Array, Array]:
    """Return the features (N, 16), classes (N,) and names of the features from OpenML.

    scikit-learn reads the file twice, for its checksum and for its values. It gets a temporary cache, since it would download the file twice
    otherwise. pandas would read the file faster, but is not a requirement of this package.
    """
    from sklearn.datasets import fetch_openml

    parser = "liac-arff" if find_spec("pandas") is None else "pandas"
    with TemporaryDirectory() as cache:
        jets = fetch_openml(data_id=OPENML_ID, as_frame=False, data_home=cache, parser=parser)
    return np.asarray(jets.data, np.float32), np.asarray(jets.target).astype(str), np.array(jets.feature_names, dtype=str)


def _require_jets(what: str, x: Array, classes: Sequence[str]) -> None:
    if x.shape[1] != FEATURES or len(classes) != CLASSES:
        found = f"{x.shape[1]} features and the classes {', '.join(classes)}"
        raise ConfigError(f"{what}: expected {FEATURES} features and {CLASSES} classes, got {found}")

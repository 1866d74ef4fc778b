"""scikit-learn's bundled handwritten digits."""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from pquant.data.splits import Splits
from pquant.data.splitting import Fractions
from pquant.settings import schema


@schema("data", "digits")
@dataclass(frozen=True)
class Digits(Fractions):
    """1797 images of 8x8 pixels with values 0 to 16, 10 classes; no network needed. Each pixel is standardised separately.

    Args:
        flatten: inputs are (64,); else (1, 8, 8), for a convolutional network.
    """

    flatten: bool = True

    def load(self, seed: int) -> Splits:
        """Return the splits."""
        table = np.loadtxt(bundled(), delimiter=",")
        x, y = table[:, :-1], table[:, -1].astype(int)
        return self.split(x if self.flatten else x.reshape(-1, 1, 8, 8), y, seed, [str(digit) for digit in range(10)])


def bundled() -> Path:
    """Return the path of scikit-learn's file with one row of pixels and class per image. It does not import scikit-learn, which takes a second."""
    package = find_spec("sklearn")
    assert package is not None and package.origin is not None
    return Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"

"""scikit-learn's bundled handwritten digits."""

from dataclasses import dataclass

from pquant.data.splits import Splits
from pquant.data.splitting import Fractions
from pquant.settings import schema


@schema("data", "digits")
@dataclass(frozen=True)
class Digits(Fractions):
    """1797 images of 8x8 pixels with values 0 to 16, 10 classes; no network needed. Each pixel is standardised by itself.

    Args:
        flatten: inputs are (64,); else (1, 8, 8), for a convolutional network.
    """

    flatten: bool = True

    def load(self, seed: int) -> Splits:
        """Return the splits."""
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return self.split(x if self.flatten else x.reshape(-1, 1, 8, 8), y, seed, [str(digit) for digit in range(10)])

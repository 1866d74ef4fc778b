"""The data source for jets as lists of particles."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from pquant.data.columns import encode, typed_targets
from pquant.data.files import file_kind, read_npz
from pquant.data.parts import checked_weights, finite
from pquant.data.splits import Preprocessing, Splits
from pquant.data.splitting import POWER_OF_TWO, Array, Weighted, as_power_of_two, moments
from pquant.errors import ConfigError
from pquant.settings import schema, setting


@schema("data", "constituents")
@dataclass(frozen=True)
class Constituents(Weighted):
    """The particles of jets: an npz file with ``x`` (jets, particles, features) and labels ``y`` (jets,); inputs are (particles, features).

    Classes are numbered by their sorted names. A particle whose features are all 0 is padding. Each feature is standardised by its mean and deviation
    over all other particles of the training jets, and padding stays 0, which then is the mean.

    Args:
        path: the npz file.
        particles: number of particles of each jet to keep, from the first one (the hardest, if the file is sorted); null: all.
    """

    path: str = ""
    particles: int | None = setting(None, ge=1)

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: no such file or arrays, arrays of other shapes or kinds, values that are not finite, fewer particles in the file, or
                too few examples.
        """
        x, y, *weight = self._checked()
        codes, classes = encode(typed_targets(y, "y"), "classification", "y")
        return self.split(x, codes, seed, classes, weight=weight[0] if weight else None)

    def scale(self, parts: Sequence[Tensor]) -> Preprocessing:
        """Shift and scale ``parts`` (jets, particles, features) in place, by mean and standard deviation over the particles of the first part.

        Padding stays 0. Return the preprocessing.

        Raises:
            ConfigError: the first part has only padding, or values that are too large to scale.
        """
        real = parts[0].any(-1)
        if not real.any():
            raise ConfigError(f"{self.path}: all features of all particles to train on are 0")
        mean, scale = moments(parts[0][real], 0)
        if self.standardize == POWER_OF_TWO:
            mean, scale = as_power_of_two(mean, scale)
        for part in parts:
            padding = ~part.any(-1, keepdim=True)
            part.sub_(mean).div_(scale).masked_fill_(padding, 0)
        return Preprocessing(mean, scale, note="a particle whose raw features are all 0 is padding: all its inputs are 0", padding=True)

    def _checked(self) -> tuple[Array, ...]:
        """Return the kept particles as float32, the labels unchanged, and the event weights, if there are any."""
        if not self.path:
            raise self.error("path", "the path of an npz file with x (jets, particles, features) and labels y (jets,)")
        if file_kind(self.path) != ".npz":
            raise ConfigError(f"{self.path}: expected an .npz file with x (jets, particles, features) and labels y (jets,)")
        x, y, *weight = read_npz(self.path, ("x", "y") if self.weight is None else ("x", "y", self.weight))
        if x.ndim != 3 or not x.size or x.dtype.kind not in "iufb" or y.shape != (len(x),):
            found = f"x {x.dtype} {x.shape} and y {y.dtype} {y.shape}"
            raise ConfigError(f"{self.path}: expected numbers x (jets, particles, features) and labels y (jets,), got {found}")
        if self.particles is not None and self.particles > x.shape[1]:
            raise self.error("particles", f"at most {x.shape[1]}, the particles of a jet in {self.path}")
        kept = finite(self.path, "x", x[:, : self.particles])
        return kept, y, *(checked_weights(self.path, str(self.weight), values, len(y)) for values in weight)

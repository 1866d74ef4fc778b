"""The data source for arrays on disk, with examples of any shape."""

from dataclasses import dataclass, replace

import numpy as np

from pquant.data.columns import typed_targets
from pquant.data.files import is_arrays
from pquant.data.labelled import LabelledFile
from pquant.data.parts import Examples, Part, finite, joined, read_parts
from pquant.data.splits import Splits
from pquant.data.splitting import Array
from pquant.errors import ConfigError
from pquant.settings import schema

KIND = "an npz file, or a folder of npy files, with inputs x (N, ...) and targets, or x_train, x_test and so on"


@schema("data", "arrays")
@dataclass(frozen=True)
class Arrays(LabelledFile):
    """Examples of any shape from an npz file or a folder of npy files: inputs ``x`` (N, ...), targets (N,), or (N, outputs) for a regression.

    Inputs are float32 in the shape that they have in the file; each of their values is standardised separately. Classes are numbered by their sorted
    names.

    Args:
        path: an npz file, or a folder with a file ``<name>.npy`` for each array. It has ``x`` and the array called ``target``; or ``x_train``,
            ``y_train``, ``x_test`` and ``y_test`` (for the target ``y``) with the test set that is then used.
        target: the array to predict; null, with ``reconstruct``: there is none.
    """

    def load(self, seed: int) -> Splits:
        """Return the splits.

        Raises:
            ConfigError: no such file or arrays, arrays of other shapes or kinds, values that are not finite, or too few examples.
        """
        return self.loaded(self.examples(), seed)

    def loaded(self, found: Examples, seed: int) -> Splits:
        """Return the splits of examples."""
        y, classes = self.encoded(found.y, found.x[0].size)
        return self.split(found.x, y, seed, classes, found.test_rows, weight=found.weight)

    def examples(self) -> Examples:
        """Return the examples of the file, their inputs as float32."""
        self.require(KIND)
        if not is_arrays(self.path):
            raise ConfigError(f"{self.path}: expected {KIND}; data=table reads tables")
        parts = read_parts(self.path, self.target, self.weight)
        for part in parts:
            if part.x.ndim < 2 or not part.x.size or part.x.dtype.kind not in "iufb" or part.x.shape[1:] != parts[0].x.shape[1:]:
                found = " and ".join(f"{one.name} {one.x.dtype} {one.x.shape}" for one in parts)
                raise ConfigError(f"{self.path}: expected numbers x (N, ...) with at least one value in an example of one shape, got {found}")
        kinds = {part.x.dtype == np.uint8 for part in parts}
        if len(kinds) > 1:
            raise ConfigError(f"{self.path}: expected bytes in both inputs or in none, got {' and '.join(str(part.x.dtype) for part in parts)}")
        whole = joined(self.path, [replace(part, x=finite(self.path, part.name, part.x), y=self._targets(part)) for part in parts])
        return replace(whole, is_bytes=kinds == {True})

    def _targets(self, part: Part) -> Array:
        """Return the targets of a part as (N,), or (N, outputs) if they are more than one."""
        y = part.y[:, 0] if part.y.ndim == 2 and part.y.shape[1] == 1 else part.y
        if y.ndim not in (1, 2) or len(y) != len(part.x) or not y.size:
            expected = f"targets ({len(part.x)},) or ({len(part.x)}, outputs) for {part.name} {part.x.shape}"
            raise ConfigError(f"{self.path}: expected {expected}, got {part.y.dtype} {part.y.shape}")
        return y if y.ndim == 2 else typed_targets(y, str(self.target))

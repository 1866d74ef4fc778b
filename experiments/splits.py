"""Write the splits of a jet file as the runs of this repository see them, for scripts of other tools that have environments of their own.

``python experiments/splits.py <jets.npz> <folder> [<seed>...]`` writes ``<folder>/<seed>.npz`` with the standardised features and the class numbers
``x_train``, ``y_train``, ``x_validation``, ``y_validation``, ``x_test`` and ``y_test``.
"""

import sys
from pathlib import Path

import numpy as np

from pquant.data import Jets

PARTS = ("train", "validation", "test")


def main() -> None:
    """Write one file for each seed."""
    file, folder, *seeds = sys.argv[1:]
    Path(folder).mkdir(parents=True, exist_ok=True)
    for seed in seeds or ["0", "1", "2"]:
        splits = Jets(path=file).load(int(seed))
        tensors = {part: getattr(splits, part).tensors for part in PARTS}
        arrays = {f"{name}_{part}": tensor.numpy() for part in PARTS for name, tensor in zip("xy", tensors[part], strict=True)}
        np.savez(Path(folder) / f"{seed}.npz", **arrays)


if __name__ == "__main__":
    main()

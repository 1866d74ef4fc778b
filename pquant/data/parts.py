"""Arrays of examples from an npz file or a folder of npy files: inputs, targets and event weights, as one set or as training and test set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pquant.data.files import read_npz
from pquant.data.splitting import Array
from pquant.errors import ConfigError


@dataclass(frozen=True)
class Part:
    """One set of examples of a file: the name of its inputs ("x", "x_train" or "x_test"), inputs ``x``, targets ``y``, and event weights, if any."""

    name: str
    x: Array
    y: Array
    weight: Array | None = None


@dataclass(frozen=True)
class Examples:
    """All examples of a file: inputs (N, ...), targets (N, ...) and weights (N,), if any; the last ``test_rows`` are the file's own test set.

    ``is_bytes`` says whether the inputs were bytes in the file.
    """

    x: Array
    y: Array
    weight: Array | None = None
    test_rows: int = 0
    is_bytes: bool = False


def read_parts(path: str | Path, target: str | None, weight: str | None = None) -> list[Part]:
    """Return the examples in the arrays ``x`` and ``target``, or in ``x_train``, ``x_test`` and so on; without ``target`` the targets are 0.

    Raises:
        ConfigError: no such file or arrays, arrays of both kinds, or invalid weights.
    """
    names = tuple(name for name in ("x", target, weight) if name is not None)
    arrays = read_npz(path, names, tuple(f"{name}_{part}" for part in ("train", "test") for name in names))
    sets = [arrays[start : start + len(names)] for start in range(0, len(arrays), len(names))]
    suffixes = ("",) if len(sets) == 1 else ("_train", "_test")
    return [_part(path, suffix, target, weight, found) for suffix, found in zip(suffixes, sets, strict=True)]


def _part(path: str | Path, suffix: str, target: str | None, weight: str | None, arrays: Sequence[Array]) -> Part:
    x = arrays[0]
    y = arrays[1] if target is not None else np.zeros(x.shape[:1])
    weights = None if weight is None else checked_weights(path, f"{weight}{suffix}", arrays[-1], len(y) if y.ndim else 0)
    return Part(f"x{suffix}", x, y, weights)


def joined(path: str | Path, parts: Sequence[Part]) -> Examples:
    """Return the examples of all parts, joined, with the file's own test set last.

    Raises:
        ConfigError: the arrays of targets differ in kind (numbers or text) or in the number of outputs.
    """
    if len({part.y.shape[1:] for part in parts}) > 1:
        raise ConfigError(f"{path}: expected as many outputs in both targets, got {' and '.join(str(part.y.shape) for part in parts)}")
    if len({part.y.dtype.kind == "U" for part in parts}) > 1:
        raise ConfigError(f"{path}: expected numbers or text in both targets, got {' and '.join(str(part.y.dtype) for part in parts)}")
    x, y = (np.concatenate(arrays) for arrays in ([part.x for part in parts], [part.y for part in parts]))
    weights = [part.weight for part in parts if part.weight is not None]
    return Examples(x, y, np.concatenate(weights) if weights else None, len(parts[1].y) if len(parts) == 2 else 0)


def finite(path: str | Path, name: str, x: Array) -> Array:
    """Return the inputs in the array ``name`` as float32; a ConfigError names the first value that is not finite in float32."""
    with np.errstate(over="ignore"):
        kept = x.astype(np.float32)
    good = np.isfinite(kept)
    if not good.all():
        place = np.argwhere(~good)[0].tolist()
        first = f"{name}[{', '.join(map(str, place))}] = {x[tuple(place)]}"
        raise ConfigError(f"{path}: {(~good).sum()} values are not finite numbers of 32 bits; the first is {first}")
    return kept


def checked_weights(path: str | Path, name: str, weight: Array, count: int) -> Array:
    """Return the event weights in the column or array ``name`` as float64 (count,).

    Raises:
        ConfigError: the weights are not numbers, have another shape, are missing, infinite or negative, or are all 0.
    """
    if weight.dtype.kind not in "iuf" or weight.shape != (count,):
        raise ConfigError(f"{path}: data.weight: expected numbers ({count},) in '{name}', got {weight.dtype} {weight.shape}")
    weight = weight.astype(np.float64)
    for bad, what in ((~np.isfinite(weight), "missing or infinite"), (weight < 0, "negative")):
        if bad.any():
            row = int(bad.argmax())
            raise ConfigError(f"{path}: data.weight: '{name}' has {bad.sum()} {what} weights; the first is {weight[row]:g}, in row {row}")
    if not weight.any():
        raise ConfigError(f"{path}: data.weight: all {count} weights in '{name}' are 0")
    return weight

"""Reading and writing of local data files, and the error for data that cannot be found."""

import logging
import math
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, TYPE_CHECKING, Any
from zipfile import ZipFile

import numpy as np

from pquant.data.splitting import Array
from pquant.errors import ConfigError, did_you_mean
from pquant.installation import extra

if TYPE_CHECKING:
    from pandas import DataFrame

log = logging.getLogger(__name__)

CACHE = "~/.cache/pquant"
GIVEN_SPLIT = ("x_train", "y_train", "x_test", "y_test")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zip": "zip"}
FILES = ".csv, .tsv (also with .gz, .bz2, .xz or .zip after it), .parquet or .npz file"
MISSING = tuple("#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan|null|".split("|"))
"""The words that pandas reads as a missing number."""

NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def expanded(path: str | Path, key: str) -> Path:
    """Return the path with ``~`` expanded; a ConfigError that names ``key`` if the user of ``~user`` does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{key}: '{path}' is in the home folder of an unknown user") from error


def existing(path: str | Path) -> Path:
    """Return the path of an existing file, with ``~`` expanded; ConfigError if it does not exist."""
    found = expanded(path, "data.path")
    try:
        there = found.is_file()
    except (OSError, ValueError):
        there = False
    if not there:
        raise ConfigError(f"data.path: there is no file '{path}'")
    return found


def file_kind(path: str | Path) -> str:
    """Return the suffix of a file in lower case, without a suffix of compression: ".csv" for ``a.CSV.gz``."""
    *others, last = [suffix.lower() for suffix in Path(path).suffixes] or [""]
    return others[-1] if last in COMPRESSIONS and others and others[-1] in SEPARATORS else last


@contextmanager
def _reading(path: str | Path, kind: str) -> Iterator[None]:
    """Turn any exception of a reader into a ``ConfigError``; a damaged file can raise any exception."""
    try:
        yield
    except (ConfigError, ImportError):
        raise
    except Exception as error:
        raise ConfigError(f"{path}: cannot be read as {kind}: {reason(error)}") from error


def is_arrays(path: str | Path) -> bool:
    """Return whether the path is an npz file, which may not exist, or a folder."""
    return file_kind(path) == ".npz" or _is_folder(path)


def read_npz(path: str | Path, *choices: tuple[str, ...]) -> list[Array]:
    """Return the arrays of an npz file or a folder of npy files: those of the first of ``choices`` whose names all exist.

    Raises:
        ConfigError: no such file, not an npz file, arrays of Python objects, no choice whose names all exist, or names of two choices.
    """
    with _members(path) as members:
        found = list(members)
        names = next((names for names in choices if set(names) <= set(found)), None)
        others = {name for choice in choices for name in choice} - set(names or ())
        if names is None:
            raise _no_arrays(path, choices, found)
        if others & set(found):
            raise ConfigError(f"{path}: has the arrays {', '.join(names)} and also {', '.join(sorted(others & set(found)))}: leave one kind out")
        return [_array(name, members[name]) for name in names]


def array_names(path: str | Path) -> list[str]:
    """Return the names of the arrays of an npz file or a folder of npy files; ConfigError if it cannot be read."""
    with _members(path) as members:
        return list(members)


def npz_names(path: str | Path, count: int) -> list[str] | None:
    """Return the names of the features, the text array ``features`` (count,) of an npz file; None if the file has no such array.

    Raises:
        ConfigError: the array has another shape, or does not hold text.
    """
    with _members(path) as members:
        if "features" not in members:
            return None
        names = _array("features", members["features"])
    if names.shape != (count,) or names.dtype.kind != "U":
        raise ConfigError(f"{path}: expected the names of {count} features as text, got features {names.dtype} {names.shape}")
    return [str(name) for name in names]


def _no_arrays(path: str | Path, choices: Sequence[tuple[str, ...]], found: Collection[str]) -> ConfigError:
    nearest = max(choices, key=lambda names: len(set(names) & set(found)))
    missing = next(name for name in nearest if name not in found)
    hint = did_you_mean(missing, [name for name in found if name not in nearest])
    expected = " or ".join(", ".join(choice) for choice in choices)
    return ConfigError(f"{path}: there is no array '{missing}'{hint or ';'} expected the arrays {expected}; found {', '.join(found) or 'none'}")


@dataclass(frozen=True)
class _Member:
    """A file in npy format: its size in bytes, and a function that opens it."""

    size: int
    open: Callable[[], IO[bytes]]


@contextmanager
def _members(path: str | Path) -> Iterator[dict[str, _Member]]:
    """Yield the arrays of an npz file, or of a folder of npy files, by name."""
    if _is_folder(path):
        with _reading(path, "a folder of npy files of plain arrays"):
            files = sorted(expanded(path, "data.path").glob("*.npy"))
            yield {file.stem: _Member(file.stat().st_size, partial(FileIO, file)) for file in files}
        return
    source = existing(path)
    with _reading(path, "an npz file of plain arrays"), ZipFile(source) as archive:
        arrays = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        yield {one.filename.removesuffix(".npy"): _Member(one.file_size, partial(archive.open, one)) for one in arrays}


def _is_folder(path: str | Path) -> bool:
    try:
        return expanded(path, "data.path").is_dir()
    except (OSError, ValueError):
        return False


def _array(name: str, member: _Member) -> Array:
    """Return an array. The size in its header is compared with the size of the data before memory is allocated."""
    with member.open() as file:
        shape, _, dtype = NPY_HEADERS[np.lib.format.read_magic(file)](file)
        size, there = math.prod(shape) * dtype.itemsize, member.size - file.tell()
    if dtype.hasobject:
        raise ValueError(f"'{name}' holds Python objects")
    if size != there:
        raise ValueError(f"'{name}' should be {dtype} {shape} of {size} bytes, but has {there}")
    with member.open() as file:
        array: Array = np.lib.format.read_array(file, allow_pickle=False)
    return array


def save_npz(path: Path, **arrays: Array) -> None:
    """Write the arrays atomically: to a temporary file, which is read back and then renamed to ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
        part = Path(file.name)
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        read_npz(part, tuple(arrays))
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_frame(path: str | Path, target: str | None) -> "DataFrame":
    """Return the columns of a csv, tsv or parquet file by name.

    An index with a name becomes a column. An index without a name, or a column of row numbers without a name, is left out. In a text file, words such
    as "NA" are missing values in all columns except ``target``, where only an empty cell is missing.

    Raises:
        ConfigError: no such file, another suffix, not readable, columns without a name or with the same one, or pandas or pyarrow is not installed.
    """
    source, kind = existing(path), file_kind(path)
    if kind not in (*SEPARATORS, ".parquet"):
        raise ConfigError(f"{path}: expected a {FILES}{did_you_mean(kind, (*SEPARATORS, '.parquet', '.npz'))}")
    try:
        with _reading(path, f"a {kind} file"):
            return _without_row_numbers(path, _read_parquet(path, source) if kind == ".parquet" else _read_text(path, source, kind, target), target)
    except ImportError as error:
        raise ConfigError(f"{path}: a {kind} file needs pandas and pyarrow: {extra('tables')}; an .npz file needs neither") from error


def _read_text(path: str | Path, source: Path, kind: str, target: str | None) -> "DataFrame":
    import pandas

    options: Any = {"sep": SEPARATORS[kind], "compression": COMPRESSIONS.get(source.suffix.lower()), "low_memory": False}
    header = pandas.read_csv(source, header=None, nrows=1, dtype=str, keep_default_na=False, **options).iloc[0].tolist()
    if len(header) == 1 and ";" in header[0]:
        raise ConfigError(f"{path}: the columns seem to be separated by ';': separate them by '{SEPARATORS[kind]}', with '.' in numbers")
    _require_different(path, [name for name in header if name])
    names = [name or f"Unnamed: {place}" for place, name in enumerate(header)]
    missing = {name: MISSING if name != target else ("",) for name in names}
    frame = pandas.read_csv(source, na_values=missing, keep_default_na=False, **options)
    if not _counts_rows(frame.index):
        raise ConfigError(f"{path}: the rows have more values than the {len(header)} names in the header")
    return frame.reset_index(drop=True)


def _read_parquet(path: str | Path, source: Path) -> "DataFrame":
    import pandas
    from pyarrow.parquet import read_schema

    _require_different(path, read_schema(source).names)
    frame = pandas.read_parquet(source, engine="pyarrow")
    if not isinstance(frame.index, pandas.RangeIndex) and None in frame.index.names:
        log.warning("%s: the index without a name is left out", path)
    frame = frame.reset_index(level=[name for name in frame.index.names if name is not None])
    return frame.set_axis([str(name) for name in frame.columns], axis=1)


def _without_row_numbers(path: str | Path, frame: "DataFrame", target: str | None) -> "DataFrame":
    """Return the table without a column of row numbers that has no name, which pandas calls "Unnamed: 0": it is not a feature."""
    unnamed = [(place, name) for place, name in enumerate(frame.columns, 1) if name.startswith("Unnamed: ") and name != target]
    for place, name in unnamed:
        if not _counts_rows(frame[name]):
            raise ConfigError(f"{path}: column {place} has no name: give it one, or leave the column out")
        log.warning("%s: column %d has no name and counts the rows: it is left out", path, place)
    return frame.drop(columns=[name for _, name in unnamed])


def _counts_rows(values: Any) -> bool:
    """Return whether the values are the row numbers, counted from 0 or from 1."""
    return any(np.array_equal(values, np.arange(first, first + len(values))) for first in (0, 1))


def _require_different(path: str | Path, names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(f"{path}: {names.count(twice[0])} columns have the name '{twice[0]}'")


def no_download(what: str, error: Exception, root: str, expected: str) -> ConfigError:
    """Return the error for data that is not in ``root`` and cannot be downloaded. The message has the reason, and the local file to give instead."""
    return ConfigError(f"{what} is not in {root} and could not be fetched ({reason(error)}); give a local copy: data.path=<{expected}>")


def reason(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

"""Reading and writing local data files, and the error for data that cannot be found."""

import os
import zlib
from http.client import HTTPException
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np

from pquant.data.splitting import Array
from pquant.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

CACHE = "~/.cache/pquant"
GIVEN_SPLIT = ("x_train", "y_train", "x_test", "y_test")
DOWNLOAD_ERRORS = (OSError, HTTPException, RuntimeError, ValueError)
BROKEN_NPZ = (OSError, ValueError, TypeError, EOFError, BadZipFile, zlib.error, NotImplementedError)


def existing(path: str | Path) -> Path:
    """Return the path of an existing file, with ``~`` expanded; ConfigError if there is none."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise ConfigError(f"data.path: there is no file '{path}'")
    return found


def read_npz(path: str | Path, *choices: tuple[str, ...]) -> list[Array]:
    """Return the arrays of the first of the ``choices`` of names of which the file has all.

    Raises:
        ConfigError: no such file, not an npz file, arrays of Python objects, or other names.
    """
    source = existing(path)
    try:
        with np.load(source, allow_pickle=False) as archive:
            names = next((names for names in choices if set(names) <= set(archive.files)), None)
            found = ", ".join(archive.files) or "none"
            arrays = [archive[name] for name in names or ()]
    except BROKEN_NPZ as error:
        raise ConfigError(f"{path}: cannot be read as an npz file of plain arrays: {reason(error)}") from error
    if names is None:
        raise ConfigError(f"{path}: expected the arrays {' or '.join(', '.join(choice) for choice in choices)}; found {found}")
    return arrays


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


def read_frame(path: str | Path) -> "DataFrame":
    """Return the columns of a csv or parquet file.

    Raises:
        ConfigError: no such file, another suffix, not readable, or pandas and pyarrow are not installed.
    """
    source = existing(path)
    if source.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{path}: expected a .csv, .parquet or .npz file")
    try:
        import pandas

        return pandas.read_csv(source) if source.suffix == ".csv" else pandas.read_parquet(source)
    except ImportError as error:
        raise ConfigError(f"{path}: a {source.suffix} file needs pip install 'pquant[tables]'; an .npz file needs nothing") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a {source.suffix} file: {reason(error)}") from error


def no_download(what: str, error: Exception, root: str, expected: str) -> ConfigError:
    """Return the error for data that is neither in ``root`` nor could be downloaded; it names the reason, and the local file to give instead."""
    return ConfigError(f"{what} is not in {root} and could not be fetched ({reason(error)}); give a local copy: data.path=<{expected}>")


def reason(error: Exception) -> str:
    """Return an error as one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())

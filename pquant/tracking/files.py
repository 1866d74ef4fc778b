"""The files of a run: JSON and CSV, written atomically."""

import csv
import io
import json
import math
import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pquant.errors import ConfigError
from pquant.tracking.background import BackgroundWorker

TOKEN = 8
"""Hexadecimal digits in the name of a file that is being written."""
PASSWORD = re.compile(
    r"(?<=://)([^\s/:@]*:)(?!\$\{)[^\s@]+(?=@)|([?&](?:pass|password|passwd|pwd|token|secret|api_key)=)(?!\$\{)[^\s&'\"]+", re.IGNORECASE
)
"""Matches the part of a URL up to and including a password; an interpolation does not match."""
UNFINISHED = f".*.{'[0-9a-f]' * TOKEN}.tmp"


class BackgroundSync(AbstractContextManager["BackgroundSync"]):
    """Syncs the versions of the file ``path`` to the disk in the background; a call waits for the sync of the version before.

    If a sync fails, the next call or the end of the context raises the ``OSError``. The last :attr:`HELD` versions stay open, so that the file
    system also frees replaced versions in the background, which takes as long as writing them.
    """

    HELD = 2

    def __init__(self, path: Path) -> None:
        self._path = path
        self._background = BackgroundWorker()
        self._held: deque[int] = deque()

    def __call__(self, number: int) -> None:
        """Start to sync an open file; the caller may close it at once."""
        self.wait()
        self._held.append(os.dup(number))
        self._background(self._sync, self._held[-1])

    def wait(self) -> None:
        """Return when the last version is on the disk."""
        try:
            self._background.wait()
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Wait for the last sync and close all files; raise its error unless another exception is being raised."""
        self._background.close()
        while self._held:
            os.close(self._held.popleft())
        if kind is None:
            self.wait()

    def _sync(self, number: int) -> None:
        try:
            os.fsync(number)
        finally:
            while len(self._held) > self.HELD:
                os.close(self._held.popleft())


def write_atomic(path: Path, content: bytes | str, keep: Path | None = None, sync: Callable[[int], None] | None = None) -> None:
    """Replace the file at ``path`` by ``content`` (text as UTF-8), atomically (temporary file, then rename).

    With ``keep`` the old file is renamed to ``keep``; after a crash it may exist under that name only. ``sync`` writes an open file to the disk,
    by default ``os.fsync``.

    Raises:
        OSError: the folder is missing, full or read-only; the old file is then intact, and no temporary file is left.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(TOKEN // 2)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            (sync or os.fsync)(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def check_links(folder: Path) -> None:
    """Check that no symbolic link in a folder leads out of it, since others may have created the folder.

    Links in a folder ``wandb`` are allowed: the client of W&B makes them, and it always writes to new names.

    Raises:
        ConfigError: a link leads out of the folder.
    """
    for path in folder.rglob("*"):
        below = "wandb" in path.relative_to(folder).parts[:-1]
        if path.is_symlink() and not below and not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{path} is a link out of its folder, and a run writes only inside its folder: replace the link by its target")


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Lock a run's folder while the context lasts. The operating system releases the lock when the process ends, in any way.

    Temporary files of a killed run are removed first.

    Raises:
        ConfigError: another process holds the lock, or a link leads out of the folder.
    """
    check_links(folder)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another run is using {folder}: wait for its end, or choose another folder (hydra.run.dir)") from error
    try:
        for unfinished in folder.rglob(UNFINISHED):
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def write_json(path: Path, obj: Any) -> None:
    """Write ``obj`` as strict JSON, keys in their order, atomically; see :func:`plain` for tensors and NaN."""
    write_atomic(path, json.dumps(plain(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def copy_over(source: Path, target: Path) -> None:
    """Copy a file, or a folder with its contents, if it exists."""
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True)
    elif source.is_file():
        shutil.copyfile(source, target)


def read_json(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds.

    Raises:
        ConfigError: the file does not hold an object, or cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a JSON object")
    return content


def without_passwords(value: Any) -> Any:
    """Return text, or the texts in nested plain values, with the passwords of URLs replaced by ``***``."""
    if isinstance(value, dict):
        return {key: without_passwords(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_passwords(item) for item in value]
    return PASSWORD.sub(lambda found: f"{found[1] or found[2]}***", value) if isinstance(value, str) else value


def plain(value: Any) -> Any:
    """Return ``value`` as plain JSON values: nested dicts with string keys, lists, strings, finite numbers, booleans and None.

    Tensors, arrays and their scalars become numbers or nested lists, NaN and infinities become None, and all other objects their ``str``.
    """
    value = _python(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


class MetricsCsv:
    """A CSV file with one row per epoch; its columns are all keys so far, in the order of their first appearance.

    Floats are written in full precision, so that reading them back gives the same bits; a missing value is empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._header: list[str] = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Append a row, completely or not at all; a new key rewrites the file with its new column, atomically."""
        if not row.keys() <= set(self._header):
            self.rewrite([*self.rows, row])
            return
        self.rows.append(_as_numbers(row))
        size = self.path.stat().st_size
        try:
            with open(self.path, "a", encoding="utf-8", newline="") as file:
                file.write(self._lines(self.rows[-1:]))
        except OSError as error:
            os.truncate(self.path, size)
            raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace all rows, atomically."""
        self.rows = [_as_numbers(row) for row in rows]
        self._header = list(dict.fromkeys(key for row in self.rows for key in row))
        write_atomic(self.path, self._lines([dict(zip(self._header, self._header, strict=True)), *self.rows]) if self._header else "")

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._header, lineterminator="\n").writerows(rows)
        return text.getvalue()


def _as_numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _python(value) for key, value in row.items()}


def _python(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value

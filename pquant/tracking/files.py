"""The files that every run leaves: written whole or not at all, read by people and by any tool."""

import csv
import io
import json
import math
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pquant.errors import ConfigError
from pquant.tracking.background import Behind

TOKEN = 8
"""Hexadecimal digits in the name of a file that is being written."""
UNFINISHED = f".*.{'[0-9a-f]' * TOKEN}.tmp"


class SyncBehind(AbstractContextManager["SyncBehind"]):
    """Brings what is written to ``path``, again and again, to the disk while work goes on: a call waits for what was written before.

    What did not arrive is an ``OSError`` of the call after, or of the end of the context. The last :attr:`HELD` files stay open, so that one that is
    replaced meanwhile is given up, which takes as long as writing it, behind the work too.
    """

    HELD = 2

    def __init__(self, path: Path) -> None:
        self._path = path
        self._behind = Behind()
        self._held: deque[int] = deque()

    def __call__(self, number: int) -> None:
        """Start with an open file, which may be closed meanwhile."""
        self.wait()
        self._held.append(os.dup(number))
        self._behind(self._sync, self._held[-1])

    def wait(self) -> None:
        """Return once all is on the disk."""
        try:
            self._behind.wait()
        except OSError as error:
            raise OSError(error.errno, error.strerror or str(error), str(self._path)) from error

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        """Close all files once all is on the disk; what did not arrive is told where no other error is under way."""
        self._behind.close()
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
    """Replace the file at ``path`` by ``content`` (text as UTF-8), so that a crash leaves either the old file or the new one.

    With ``keep`` the old file stays, under that name; a crash may then leave it under that name alone. ``sync`` brings an open file to the disk,
    ``os.fsync`` unless given.

    Raises:
        OSError: the folder is missing, full or read-only; the old file is then intact and nothing else is left.
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


@contextmanager
def only_run_in(folder: Path) -> Iterator[None]:
    """Hold a run's folder; whoever else asks for it meanwhile is refused. The lock goes with the process, however that ends.

    What a killed run was writing is removed first.

    Raises:
        ConfigError: another process holds it.
    """
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ConfigError(f"another run is at work in {folder}: wait for its end, or give this one a folder of its own (hydra.run.dir)") from error
    try:
        for unfinished in folder.rglob(UNFINISHED):
            unfinished.unlink(missing_ok=True)
        yield
    finally:
        lock.release()


def write_json(path: Path, obj: Any) -> None:
    """Write ``obj`` as strict JSON, keys in their order, atomically; see :func:`plain` for what becomes of tensors and NaN."""
    write_atomic(path, json.dumps(plain(obj), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """Return ``value`` as JSON has it: nested dicts with string keys, lists, strings, finite numbers, booleans and None.

    Tensors, arrays and their scalars become numbers or nested lists, NaN and infinities None, all else its ``str``.
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
    """A CSV file with a row an epoch; its columns are all keys seen so far, in the order in which they came.

    Floats are written in full, so that reading them back gives the same bits; what a row does not have is left empty.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._header: list[str] = []

    def append(self, row: Mapping[str, Any]) -> None:
        """Add a row at the end, whole or not at all; a key never seen before rewrites the file with its new column, atomically."""
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

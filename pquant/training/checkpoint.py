"""Checkpoints: the state of the last complete epoch, with a checksum; the previous checkpoint is kept."""

import hashlib
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pquant.errors import ConfigError
from pquant.tracking.files import write_atomic

log = logging.getLogger(__name__)


def previous(path: Path) -> Path:
    """Return the path of the checkpoint that was written before the one in ``path``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def has_checkpoint(path: Path) -> bool:
    """Return whether a checkpoint exists, the last or the previous one."""
    return path.is_file() or previous(path).is_file()


def cloned(state: Any) -> Any:
    """Return a copy of a state: tensors and plain values in nested dictionaries, lists and tuples."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, dict):
        return {key: cloned(value) for key, value in state.items()}
    return type(state)(map(cloned, state)) if type(state) in (list, tuple) else state


def save_checkpoint(path: Path, state: dict[str, Any], sync: Callable[[int], None] | None = None) -> None:
    """Write ``state`` (tensors and plain values, nested) with its checksum; the existing checkpoint becomes the :func:`previous` one.

    After a crash at any moment one of the two files is complete. This also holds for a power failure while ``sync`` flushes the new file to the
    disk, since the previous file was flushed before.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, _seal(payload) + payload, keep=previous(path), sync=sync)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in ``path``, on the CPU; if the file is missing or damaged, return the previous state and log a warning.

    No code in the file is executed.

    Raises:
        ConfigError: both files are missing or damaged.
    """
    problems = []
    for file in (path, previous(path)):
        try:
            state = _read(file)
        except (OSError, ValueError) as error:
            problems.append(f"{file}: {error}")
            continue
        if problems:
            log.warning("resuming from the checkpoint before the last: %s", problems[0])
        return state
    raise ConfigError(f"no readable checkpoint: {'; '.join(problems)}")


def _seal(payload: bytes) -> bytes:
    return b"pquant checkpoint, sha256 " + hashlib.sha256(payload).hexdigest().encode() + b"\n"


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError("the file does not exist")
    _, _, payload = (content := path.read_bytes()).partition(b"\n")
    if content != _seal(payload) + payload:
        raise ValueError("damaged: its checksum differs")
    try:
        return torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"not a checkpoint: {error}") from error

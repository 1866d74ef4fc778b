"""Checkpoints: the state of the last complete epoch, whole or not at all."""

import io
from pathlib import Path
from typing import Any

import torch

from pquant.errors import ConfigError
from pquant.tracking.files import write_atomic


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain values, nested) so that a crash leaves either the old file or the new one."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_atomic(path, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Return the state in ``path``, on the CPU; nothing in the file is run.

    Raises:
        ConfigError: there is no such file, or it is no checkpoint.
    """
    if not path.is_file():
        raise ConfigError(f"no checkpoint at {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ConfigError(f"{path} is not a readable checkpoint: {error}") from error

"""Checkpoints that are cut, changed, missing or hostile."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pquant.errors import ConfigError
from pquant.training.checkpoint import load_checkpoint, previous, save_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a checkpoint of epoch 2 with that of epoch 1 before it."""
    for epoch in (1, 2):
        save_checkpoint(tmp_path / "checkpoint.pt", {"epoch": epoch, "weight": torch.full((3,), float(epoch))})
    return tmp_path / "checkpoint.pt"


def test_the_last_one_comes_back_and_the_one_before_is_kept(path: Path) -> None:
    assert load_checkpoint(path)["weight"].tolist() == [2.0, 2.0, 2.0]
    assert load_checkpoint(previous(path))["epoch"] == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


@given(where=st.floats(0, 1, exclude_max=True), kind=st.sampled_from(["cut", "flip", "empty", "gone"]))
def test_whatever_happened_to_it_the_one_before_serves(where: float, kind: str, tmp_path_factory: Any) -> None:
    path: Path = tmp_path_factory.mktemp("run") / "checkpoint.pt"
    for epoch in (1, 2):
        save_checkpoint(path, {"epoch": epoch})
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    content[place] ^= 0xFF
    changed = {"cut": bytes(content[:place]), "flip": bytes(content), "empty": b""}
    path.unlink() if kind == "gone" else path.write_bytes(changed[kind])
    assert load_checkpoint(path)["epoch"] == 1


def test_a_damaged_one_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.write_bytes(path.read_bytes()[:-1])
    load_checkpoint(path)
    assert "resuming from the checkpoint before the last" in caplog.text and "checksum" in caplog.text


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_crash_while_writing_leaves_one_whole(path: Path, fails: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = getattr(os, fails)

    def crash(*args: Any) -> None:
        calls.append(1)
        if fails == "replace" and len(calls) == 1:
            return real(*args)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, crash)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"epoch": 3})
    monkeypatch.undo()
    assert load_checkpoint(path)["epoch"] == 2
    assert not list(path.parent.glob("*.tmp"))


def test_neither_there_is_an_error_that_names_both(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no readable checkpoint: .*none.pt: the file does not exist; .*none.previous.pt: the file does not exist"):
        load_checkpoint(tmp_path / "none.pt")


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    save_checkpoint(tmp_path / "checkpoint.pt", {"attack": Attack()})
    with pytest.raises(ConfigError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "owned").exists()

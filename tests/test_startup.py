"""Ctrl-C while the commands of the package import libraries."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pquant.installation import ROOT
from pquant.startup import is_own_command

IMPORTING = "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit('went on')\n"
SCRIPT = "from pquant.__main__ import main\nmain()\n"


@pytest.mark.parametrize("command", [["-m", "pquant", "tracker=none"], ["pquant", "tracker=none"]])
def test_an_interrupt_while_importing_ends_the_command_without_a_traceback(command: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text(IMPORTING)
    (tmp_path / "pquant").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    restored = f"import signal, os, sys; signal.signal(signal.SIGINT, signal.default_int_handler); os.execv({sys.executable!r}, sys.argv[1:])"
    started = [sys.executable, "-c", restored, sys.executable, *command]  # a shell has what runs in its background ignore the signal
    ended = subprocess.run(started, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    assert (ended.returncode, ended.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize(
    ("argv", "original", "own"),
    [
        (["/usr/bin/pquant", "seed=1"], ["python", "/usr/bin/pquant", "seed=1"], True),
        (["C:/bin/pquant.exe"], ["python", "C:/bin/pquant.exe"], True),
        (["-m", "seed=1"], ["python", "-m", "pquant", "seed=1"], True),
        (["-m"], ["python", "-X", "dev", "-m", "pquant"], True),
        (["-m"], ["python", "-m", "others"], False),
        (["-m"], ["python", "-m", "pquant.convert_config"], False),
        (["train.py", "-m", "pquant"], ["python", "train.py", "-m", "pquant"], False),
        ([""], ["python"], False),
        ([], ["python"], False),
    ],
)
def test_only_own_commands_change_what_the_signal_does(argv: list[str], original: list[str], own: bool) -> None:
    assert is_own_command(argv, original) is own

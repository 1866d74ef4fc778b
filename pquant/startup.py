"""Lets SIGINT (Ctrl-C) end the commands ``pquant`` and ``python -m pquant`` without a traceback while they import libraries, which takes seconds.

The package imports this module first; :func:`pquant.command_line.main` restores Python's handler. ``run.py`` does the same for itself.
"""

import signal
import sys
import threading
from pathlib import Path


def is_own_command(argv: list[str], original: list[str]) -> bool:
    """Return whether ``sys.argv`` and ``sys.orig_argv`` are those of one of these commands."""
    as_module = any(pair == ("-m", "pquant") for pair in zip(original[1:], original[2:], strict=False))
    return Path(argv[0]).stem == "pquant" if argv and argv[0] != "-m" else as_module


if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    if is_own_command(sys.argv, sys.orig_argv):
        signal.signal(signal.SIGINT, signal.SIG_DFL)

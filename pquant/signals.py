"""Signals that end a run cleanly."""

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

log = logging.getLogger(__name__)

SLURM_JOB = "SLURM_JOB_ID"


class Interrupted(KeyboardInterrupt):
    """A signal asked the process to end; ``exit_code`` is 128 plus its number, as in shells."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number

    @property
    def requeues(self) -> bool:
        """Whether the signal announced a pre-emption, after which Slurm runs the job again."""
        return self.exit_code == 128 + signal.SIGUSR1


@contextmanager
def prompt() -> Iterator[None]:
    """Raise :class:`Interrupted` as soon as SIGINT or SIGTERM arrives, or SIGUSR1 in a Slurm job; a signal with another handler keeps it."""
    with _handling(_interrupt):
        yield


@contextmanager
def graceful() -> Iterator[Callable[[], None]]:
    """Delay these signals, and yield a check that raises :class:`Interrupted` once one has arrived; a second signal is not delayed.

    A signal after the last check is raised at the end of the context. Python delivers signals to the main thread only; in other threads the check
    does nothing.
    """
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, before[number])

    def check() -> None:
        if received:
            raise Interrupted(received[0])

    with _handling(remember) as before:
        yield check
    check()


def requeue() -> None:
    """Ask Slurm to run this job again from its start, which with ``resume=auto`` resumes after the last complete epoch."""
    command = ["scontrol", "requeue", os.environ[SLURM_JOB]]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        log.warning("%s failed: %s", " ".join(command), getattr(error, "stderr", "") or error)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise Interrupted(number)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], None]) -> Iterator[dict[int, Any]]:
    """Install ``handler`` for the signals; yield their previous handlers."""
    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGUSR1] if SLURM_JOB in os.environ else [])]
    main = threading.current_thread() is threading.main_thread()
    before = {int(number): signal.getsignal(number) for number in signals if main}
    before = {number: known for number, known in before.items() if known in (signal.SIG_DFL, signal.default_int_handler, _interrupt)}
    for number in before:
        signal.signal(number, handler)
    try:
        yield before
    finally:
        for number, known in before.items():
            signal.signal(number, known)

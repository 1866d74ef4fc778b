"""Signals that end a run cleanly."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

log = logging.getLogger(__name__)

SLURM_JOB, ARRAY_JOB, ARRAY_TASK = "SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"
SUBMITIT = "SUBMITIT_EXECUTOR"


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
    """Raise :class:`Interrupted` as soon as SIGINT or SIGTERM arrives, or SIGUSR1 in a Slurm job. A signal with another handler keeps it."""
    with _handling(_interrupt):
        yield


@contextmanager
def graceful() -> Iterator[Callable[[], None]]:
    """Delay the signals of :func:`prompt`, and yield a check that raises :class:`Interrupted` once one has arrived; a second signal is not delayed.

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


def end(interrupt: Interrupted) -> NoReturn:
    """End the process with the exit code of a signal; after a pre-emption, Slurm runs its job again."""
    if interrupt.requeues:
        requeue()
    sys.exit(interrupt.exit_code)


@contextmanager
def submitit_job() -> Iterator[None]:
    """In a Slurm job of submitit, end the process when a signal ends the block; elsewhere do nothing.

    Submitit's own handler ignores SIGTERM, so that Slurm would have to kill the job. Its handler of SIGUSR2, which requeues the job, stays.
    """
    if os.environ.get(SUBMITIT) != "slurm":
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    except Interrupted as interrupt:
        end(interrupt)


def requeue() -> None:
    """Ask Slurm to run this job again from its start, which with ``resume=auto`` resumes after the last complete epoch.

    In an array, the job id may be that of the whole array, so the job is named by its index in the array.
    """
    place = f"{os.environ[ARRAY_JOB]}_{os.environ[ARRAY_TASK]}" if ARRAY_JOB in os.environ else os.environ[SLURM_JOB]
    command = ["scontrol", "requeue", place]
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

"""The end of a trial that takes too long."""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_TO_END = 15.0
"""After its time has passed, a trial has this long to clean up before its process ends."""


class TrialTimeoutError(Exception):
    """A trial did not end in its time."""


class _Alarm(BaseException):
    """What the clock raises: no error, so that code which handles errors lets it pass."""


@contextmanager
def limited(seconds: float | None, give_up: Callable[[str], None]) -> Iterator[None]:
    """Raise :class:`TrialTimeoutError` in the main thread after ``seconds``; null: never.

    Where the error cannot be raised, as inside a call of C++, or is caught, ``give_up`` gets the reason ``SECONDS_TO_END`` later, and the process
    ends. Where even that fails, the process ends after as long again, with the stack of each thread on stderr.
    """
    if seconds is None:
        yield
        return
    reason = f"not ended after finetuning.trial_timeout = {seconds:g} seconds"

    def end() -> None:
        try:
            give_up(reason)
        finally:
            os._exit(1)

    last = threading.Timer(seconds + SECONDS_TO_END, end)
    last.daemon = True
    last.start()
    if sys.__stderr__:
        faulthandler.dump_traceback_later(seconds + 2 * SECONDS_TO_END, exit=True, file=sys.__stderr__)
    try:
        with _alarm(seconds):
            yield
    except _Alarm:
        raise TrialTimeoutError(reason) from None
    finally:
        last.cancel()
        faulthandler.cancel_dump_traceback_later()


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise the alarm by the clock of the process; only its main thread can, and not on Windows."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def raise_error(number: int, frame: object) -> None:
        raise _Alarm

    before = signal.signal(signal.SIGALRM, raise_error)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

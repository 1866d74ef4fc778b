"""Time limit of a trial."""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SECONDS_TO_END = 15.0
"""Seconds that a trial has to clean up, after its time limit, before its process ends."""


class TrialTimeoutError(Exception):
    """A trial did not end within its time limit."""


class _Alarm(BaseException):
    """The exception that the timer raises. It is not an Exception, so that code which handles errors does not catch it."""


@contextmanager
def limited(seconds: float | None, give_up: Callable[[str], None]) -> Iterator[None]:
    """Raise :class:`TrialTimeoutError` in the main thread after ``seconds``; None: never.

    If the error cannot be raised, as inside a call of C++, or is caught, ``give_up`` is called with the reason ``SECONDS_TO_END`` later, and the
    process ends. If that fails too, the process ends after another ``SECONDS_TO_END``, and prints the stack of each thread to stderr.
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
    """Raise the alarm by a timer of the process; it works only in the main thread, and not on Windows."""
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

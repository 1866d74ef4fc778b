"""Signals that end a run in good order."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal has asked the process to end; ``exit_code`` is 128 plus its number, as shells have it."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 128 + number


@contextmanager
def graceful() -> Iterator[Callable[[], None]]:
    """Let SIGINT and SIGTERM wait, and yield a check that raises :class:`Interrupted` once one has come; a second one ends the process at once.

    Outside the main thread, which alone gets signals, the check does nothing.
    """
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(number, before[number])

    def check() -> None:
        if came:
            raise Interrupted(came[0])

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = {int(number): signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, remember)
    try:
        yield check
    finally:
        for number in SIGNALS:
            signal.signal(number, before[number])

"""Things that go on behind the work, one after the other."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Behind:
    """Does one thing at a time in a thread of its own: a call waits for the thing before, and raises the error that this ended with."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def __call__(self, action: Callable[..., None], *arguments: Any) -> None:
        """Start with a thing."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1)
        self._last = self._thread.submit(action, *arguments)

    def wait(self) -> None:
        """Return once all is done; raise the error of the last thing, once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """End the thread once all is done; :meth:`wait` still tells how the last thing ended."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

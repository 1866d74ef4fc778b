"""Actions that run in the background while the run continues."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class BackgroundWorker:
    """Runs one action at a time in its own thread. A call waits for the previous action, and raises the error that it ended with."""

    def __init__(self) -> None:
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def __call__(self, action: Callable[..., None], *arguments: Any) -> None:
        """Start an action."""
        self.wait()
        self._thread = self._thread or ThreadPoolExecutor(1)
        self._last = self._thread.submit(action, *arguments)

    def wait(self) -> None:
        """Return when the last action has ended; raise its error, once."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def close(self) -> None:
        """End the thread when the last action has ended; :meth:`wait` still raises the action's error."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = None

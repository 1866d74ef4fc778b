"""A tracker's connection to its service; an error of the service never stops the run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pquant.tracking.background import BackgroundWorker

log = logging.getLogger(__name__)

Live = TypeVar("Live")


class Session(Generic[Live]):
    """The run of a service, if it is live: None before it begins, after it ends and after an error, which is logged once.

    ``folder`` is the folder of the last run. Actions run one at a time, in the order of the calls.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.run: Live | None = None
        self.folder = Path()
        self._background = BackgroundWorker()

    def begin(self, folder: Path, init: Callable[[], Live]) -> None:
        """Start the run by ``init``."""
        self.folder = folder
        with self._giving_up_on_error():
            self.run = init()

    def do(self, action: Callable[[Live], object]) -> None:
        """Call ``action`` with the run, if there is one."""
        self._background.wait()
        self._do(action)

    def do_in_background(self, action: Callable[[Live], object]) -> None:
        """Call ``action`` with the run in the background; wait first for the previous action."""
        self._background.wait()
        if self.run is not None:
            self._background(self._do, action)

    def end(self, action: Callable[[Live], object]) -> None:
        """Call a last ``action`` with the run."""
        self.do(action)
        self.run = None
        self._background.close()

    def _do(self, action: Callable[[Live], object]) -> None:
        if self.run is not None:
            with self._giving_up_on_error():
                action(self.run)

    @contextmanager
    def _giving_up_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self.run = None
            log.warning("%s failed, the run continues without it: %s: %s", self.service, type(error).__name__, error)

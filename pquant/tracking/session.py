"""A tracker's connection to its service, which never stands in the way of a run."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pquant.tracking.background import Behind

log = logging.getLogger(__name__)

Live = TypeVar("Live")


class Session(Generic[Live]):
    """The live run of a service; none before it begins, after it ends and once it has failed, which is logged once.

    ``folder`` is that of the run that began last. Things are done one after the other, in the order in which they are asked for.
    """

    def __init__(self, service: str) -> None:
        self.service = service
        self.run: Live | None = None
        self.folder = Path()
        self._behind = Behind()

    def begin(self, folder: Path, init: Callable[[], Live]) -> None:
        """Set the run to what ``init`` gives."""
        self.folder = folder
        with self._giving_up_on_error():
            self.run = init()

    def do(self, action: Callable[[Live], object]) -> None:
        """Do something with the run, if there is one."""
        self._behind.wait()
        self._do(action)

    def do_behind(self, action: Callable[[Live], object]) -> None:
        """Do something with the run while work goes on, which waits only where the thing before takes until now."""
        self._behind.wait()
        if self.run is not None:
            self._behind(self._do, action)

    def end(self, action: Callable[[Live], object]) -> None:
        """Do a last thing with the run."""
        self.do(action)
        self.run = None
        self._behind.close()

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
            log.warning("%s failed, the run goes on without it: %s: %s", self.service, type(error).__name__, error)

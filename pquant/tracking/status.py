"""The status of a run: in ``status.json``, and for its tracker."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pquant.errors import StoppedEarly
from pquant.installation import PROGRAM
from pquant.signals import graceful
from pquant.tracking.files import write_json
from pquant.tracking.tracker import Tracker

log = logging.getLogger(__name__)

STATUS = "status.json"


@contextmanager
def recorded_status(folder: Path, config: dict[str, Any], tracker: Tracker) -> Iterator[None]:
    """Record inside the context that the run is "running", and at its end whether it "finished", "failed" or was "interrupted"."""
    end = "failed"
    try:
        write_json(folder / STATUS, {"status": "running"})
        tracker.start(folder, config)
        yield
        end = "finished"
    except StoppedEarly:
        end = "finished"
        raise
    except (KeyboardInterrupt, SystemExit):  # the second: a signal that a launcher handles
        end = "interrupted"
        log.warning("interrupted; %s resume=%s resumes after the last complete epoch", " ".join(PROGRAM), folder)
        raise
    finally:
        with graceful():
            with suppress(OSError):
                write_json(folder / STATUS, {"status": end})
            tracker.finish(end)

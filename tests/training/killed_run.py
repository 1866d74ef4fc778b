"""``run.py``, killed ``$SECONDS_MORE`` after the ``$KILL_AFTER``-th change of a file in the folder ``$WATCHED``, where every write is slow.

A run that is left alone writes the number of changes into ``$COUNTED``.
"""

import os
import runpy
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

CHANGES = ("os.rename", "os.remove", "os.truncate", "os.mkdir")
watched, kill_after, seconds_more = os.environ["WATCHED"], int(os.environ["KILL_AFTER"]), float(os.environ["SECONDS_MORE"])
changes = 0
fsync = os.fsync


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def count(event: str, args: tuple[Any, ...]) -> None:
    global changes
    writes = event == "open" and set(args[1] or "") & set("wxa")
    if not (writes or event in CHANGES) or not str(args[0]).startswith(watched):
        return
    changes += 1
    if changes == kill_after:
        threading.Timer(seconds_more, kill).start() if seconds_more else kill()


def slow_fsync(number: int) -> None:
    time.sleep(0.02)
    fsync(number)


os.fsync = slow_fsync
sys.addaudithook(count)
runpy.run_path("run.py", run_name="__main__")
Path(os.environ["COUNTED"]).write_text(str(changes))

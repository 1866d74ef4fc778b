"""A server of runs: for each line of JSON on its input it forks a process that is ``python run.py``, and answers how that ended.

A line has ``arguments`` and ``watched``, the run's folder; ``kill_after``, a number of changes of files there, and ``seconds_more``:
that long after them the process gets SIGKILL (0 changes: never). Every write is slow.
The answer has the ``exit`` code, negative for a signal, and the number of ``changes``.
"""

import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from typing import Any

for library in ("run", "matplotlib.pyplot"):
    importlib.import_module(library)

CHANGES = ("os.rename", "os.remove", "os.truncate", "os.mkdir")


class Killer:
    """Counts the changes of files in a folder, and kills the process in time."""

    def __init__(self, watched: str, kill_after: int, seconds_more: float) -> None:
        self.watched, self.kill_after, self.seconds_more, self.changes = watched, kill_after, seconds_more, 0

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        writes = event == "open" and set(args[1] or "") & set("wxa")
        if not (writes or event in CHANGES) or not str(args[0]).startswith(self.watched):
            return
        self.changes += 1
        if self.changes == self.kill_after:
            threading.Timer(self.seconds_more, kill).start() if self.seconds_more else kill()


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def slow_fsync(number: int, fsync: Any = os.fsync) -> None:
    time.sleep(0.02)
    fsync(number)


def conduct(arguments: list[str], answer: int, **when: Any) -> None:
    """Be one run, to its end."""
    code, killer = 1, Killer(**when)
    try:
        os.fsync, sys.argv = slow_fsync, ["run.py", *arguments]
        sys.addaudithook(killer)
        runpy.run_path("run.py", run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        print(end, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        os.write(answer, str(killer.changes).encode())
        os._exit(code)


for line in sys.stdin:
    reader, writer = os.pipe()
    process = os.fork()
    if not process:
        os.dup2(2, 1)
        conduct(answer=writer, **json.loads(line))
    os.close(writer)
    _, status = os.waitpid(process, 0)
    with os.fdopen(reader) as file:
        print(json.dumps({"exit": os.waitstatus_to_exitcode(status), "changes": int(file.read() or 0)}), flush=True)

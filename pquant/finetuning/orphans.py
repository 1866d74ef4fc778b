"""Ends workers whose study was killed. Otherwise they would continue to train while the study resumes, and then wait forever."""

import os
import threading
import time

SECONDS_BETWEEN_LOOKS = 1.0


def end_with(study: int) -> None:
    """End this process once the process ``study`` has ended, on POSIX systems; its current trial resumes from the checkpoint with the study."""
    if os.name == "posix":
        threading.Thread(target=_wait_and_exit, args=(study,), daemon=True).start()


def _wait_and_exit(study: int) -> None:
    while _lives(study):
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True

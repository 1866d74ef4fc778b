"""A few calls on end, timed alike in our process and in the reference's."""

import time
from collections.abc import Callable

LONG = 0.05
"""Seconds of a step that is not much disturbed by what ran before."""
Call = Callable[[], None]


def nothing() -> None:
    """Wait for nothing, as calls that compute on the CPU have ended when they return."""


def burst(call: Call, wait: Call = nothing) -> float:
    """Call a few times; return the mean seconds of all but the first two, or of the first where it takes long.

    ``wait`` returns once all that calls have begun is done.
    """
    taken = _seconds(call, wait, 1)
    if taken > LONG:
        return taken
    call()
    return _seconds(call, wait, 5)


def _seconds(call: Call, wait: Call, times: int) -> float:
    wait()
    start = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - start) / times

"""A few calls on end, timed alike in our process and in the reference's."""

import time
from collections.abc import Callable

LONG = 0.05
"""Seconds of a step that is not much disturbed by what ran before."""
Call = Callable[[], None]


def burst(call: Call) -> float:
    """Call a few times; return the mean seconds of all but the first two, or of the first where it takes long."""
    start = time.perf_counter()
    call()
    taken = time.perf_counter() - start
    if taken > LONG:
        return taken
    call()
    start = time.perf_counter()
    for _ in range(5):
        call()
    return (time.perf_counter() - start) / 5

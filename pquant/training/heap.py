"""Memory that the process keeps for the next step.

The C library of Linux hands large blocks back to the system as soon as they are freed. Each page that a step gets anew costs a page fault, which is
together up to a third of the time of a step with large activations.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
MOST = 2**31 - 1


def keep_memory() -> bool:
    """Let this process keep the memory of freed tensors (up to 2 GiB each) for new ones; return whether its C library can (glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        set_option = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    return all(set_option(option, MOST) for option in (TRIM_THRESHOLD, MMAP_THRESHOLD))

"""How the process of a worker is set up, once all that stays is there."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

SWITCH_SECONDS = 0.001  # a thread may keep the others waiting so long, not Python's 5 ms: a snapshot takes no longer
UNDISTURBED_SECONDS = 0.004
KEPT_BYTES = 256 << 20  # freed memory that is not given back to the system: each page that comes again costs 0.5 us
LARGEST_KEPT = 32 << 20  # of one allocation; glibc takes no more

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def settle() -> None:
    """For a stream of short-lived arrays and records, worked on by few threads."""
    sys.setswitchinterval(SWITCH_SECONDS)
    gc.freeze()  # what is here stays
    gc.set_threshold(500_000, 20, 100)  # records come and go by the thousand and are no cycles
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # of glibc
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


@contextmanager
def undisturbed() -> Iterator[None]:
    """No other thread takes the GIL away within UNDISTURBED_SECONDS: for what is over by then.

    To get it back would last until the other thread waits for something, or has had its time.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(UNDISTURBED_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)

"""What a process that holds large tables asks of Python's collector and of the C library."""

import ctypes
import gc
from contextlib import suppress

_ARENA_MAX = -8
"""What glibc's `mallopt` calls the most areas of memory that threads have of their own."""


def prepare() -> None:
    """Before there are threads.

    Modules and rows are many containers without cycles: as it is set, the collector takes a fifth of a start,
    a tenth of a worker's time and half of a view's. One thread fetches changelogs, another holds them: with
    an area for each, what the first one had freed was a fifth of a worker after its start.
    """
    gc.set_threshold(500_000, 20, 50)
    with suppress(AttributeError):  # other C libraries have nothing of the kind
        ctypes.CDLL(None).mallopt(_ARENA_MAX, 1)


def give_back() -> None:
    """What the fetched changelogs took: as much again as a third of the tables, which glibc would keep.

    Whoever has read one to its end calls it. The collector, which comes seldom, goes first: it takes a tenth
    of a second.
    """
    gc.collect()
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)

"""What a process that holds large tables asks of Python's collector and of the C library."""

import ctypes
import gc
from contextlib import suppress


def collect_seldom() -> None:
    """Modules and rows are many containers without cycles: as it is set, the collector takes a fifth of a
    start, a tenth of a worker's time and half of a view's."""
    gc.set_threshold(500_000, 20, 50)


def give_back() -> None:
    """What the fetched changelogs took: as much again as a third of the tables, which glibc would keep.

    The collector, which comes seldom, goes first: it takes a tenth of a second once, when a worker starts.
    """
    gc.collect()
    with suppress(AttributeError):  # other C libraries have nothing of the kind
        ctypes.CDLL(None).malloc_trim(0)

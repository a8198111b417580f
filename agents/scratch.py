"""Temporary folders that do not outlive their process, even if it is killed: the next one removes them.

Each holds a file that its process has locked. A lock ends with its process, so where it can be had, nobody
works in that folder any more.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Self

PREFIX = "callfunnel-"
HELD = ".held"


class Scratch:
    """A temporary folder of a kind; it exists from the start to `remove`."""

    def __init__(self, kind: str) -> None:
        remove_left_behind(kind)
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{kind}-"))
        unnamed = self.path / f"{HELD}-soon"
        self._file = unnamed.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        unnamed.rename(self.path / HELD)  # never there without its lock

    def remove(self) -> None:
        """May be called again."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def remove_left_behind(kind: str) -> None:
    """Remove the folders of this kind whose processes were killed, as far as they are ours to remove."""
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}{kind}-*/{HELD}"):
        with suppress(OSError), held.open() as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)

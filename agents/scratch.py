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


class DataFolder:
    """Where a program that starts and stops keeps its data: in `kept`, or in a Scratch for each start."""

    def __init__(self, kind: str, kept: Path | None) -> None:
        self.kept = kept
        self._kind = kind
        self._scratch: Scratch | None = None

    def open(self) -> Path:
        """The folder, for the time until `close`."""
        if self.kept is not None:
            return self.kept.resolve()
        self._scratch = Scratch(self._kind)
        return self._scratch.path

    def close(self) -> None:
        """Remove a temporary folder. May be called again."""
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None


def remove_left_behind(kind: str) -> None:
    """Remove the folders of this kind whose processes were killed, as far as they are ours to remove."""
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}{kind}-*/{HELD}"):
        with suppress(OSError), held.open() as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                continue
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(held.parent, ignore_errors=True)

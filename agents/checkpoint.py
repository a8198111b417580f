"""How far a file was published, kept across a crash.

The law: a line is skipped only if it was acknowledged or refused before, in this very file: a file that has
changed since starts again, which costs time and nothing else, as an event counts once.
"""

import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Self

import msgspec
from msgspec import Struct

from agents.errors import SettingError


class Done(Struct, frozen=True):
    """The lines that are done: how far, and what became of them."""

    line: int = 0
    acknowledged: int = 0
    refused: int = 0


class _Saved(Struct, frozen=True):
    publishes: str
    file_version: str
    done: Done


class Checkpoint:
    """The progress of publishing `source` to `destination` (any text that names it), saved at `path`."""

    def __init__(self, path: Path, source: Path, destination: str) -> None:
        self.path = path
        self._publishes = f"{source.resolve()} to {destination}"
        stat = source.stat()
        self._file_version = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"

    @classmethod
    def in_folder(cls, folder: Path, source: Path, destination: str) -> Self:
        """A checkpoint of its own for each file and destination."""
        name = sha256(f"{source.resolve()} to {destination}".encode()).hexdigest()[:16]
        return cls(folder / "publish" / f"{name}.json", source, destination)

    def load(self) -> Done:
        """Where to go on: nothing is done yet unless this file, unchanged, was going there."""
        try:
            saved = msgspec.json.decode(self.path.read_bytes(), type=_Saved)
        except FileNotFoundError:
            return Done()
        except msgspec.MsgspecError:
            raise SettingError(f"{self.path} is no progress file, and is left alone: name another.") from None
        mine = saved.publishes == self._publishes and saved.file_version == self._file_version
        return saved.done if mine else Done()

    def save(self, done: Done) -> None:
        """Replaces the last one whole, so that a crash leaves the one or the other."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        unfinished.write_bytes(msgspec.json.encode(_Saved(self._publishes, self._file_version, done)))
        unfinished.replace(self.path)

    def remove(self) -> None:
        """The file is done: the next run begins at its start."""
        self.path.unlink(missing_ok=True)


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where a user's programs keep what must outlive them (XDG base directories)."""
    home = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "callfunnel"

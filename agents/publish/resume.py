"""How far a file was published, kept across a crash.

The law: a line is skipped only if it was acknowledged or refused before, in this very file and by this very
topic. What does not fit is for a person to decide. Two runs never share a resume point, and what a killed run
left half done is removed by the next one.
"""

import fcntl
import os
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, Self

import msgspec
from msgspec import Struct

from callfunnel.agents.errors import Busy, SettingError
from callfunnel.agents.publish.destination import Acknowledged


class Done(Struct, frozen=True):
    """The lines that are done: how far, and what became of them."""

    line: int = 0
    acknowledged: int = 0
    refused: int = 0


class ResumePoint(Struct, frozen=True):
    """Where a run stopped: up to which line, of which file, and in which topic its events are."""

    publishes: str
    """File and destination."""
    done: Done
    lines_sha256: str = ""
    """Of the lines that are done. Earlier versions kept none, and `file_version` in its place."""
    topic_id: str = ""
    """Empty where the broker gives none, and in those of earlier versions."""
    last: Acknowledged | None = None
    """The last event that the topic acknowledged."""
    file_version: str = ""


class Lines:
    """The checksum of a file's lines, up to one of them."""

    def __init__(self) -> None:
        self.count = 0
        self.bytes = 0
        self._hash = sha256()

    def take(self, line: bytes) -> None:
        """The next line. The last one of a file counts as one that ends: more may be appended behind it."""
        self.count += 1
        self.bytes += len(line)
        self._hash.update(line)
        if not line.endswith(b"\n"):
            self._hash.update(b"\n")

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Checkpoint:
    """The resume point of publishing `source` to `destination` (any text that names it), kept at `path`.

    A context manager: within it, no other run has this resume point. Entering raises Busy when another one
    has it, and SettingError when `path` cannot be used.
    """

    def __init__(self, path: Path, source: Path, destination: str) -> None:
        self.path = path
        self.publishes = f"{source.resolve()} to {destination}"
        self._source = source
        self._left_behind: list[Path] = []
        self._held: BinaryIO

    @classmethod
    def in_folder(cls, folder: Path, source: Path, destination: str) -> Self:
        """A checkpoint of its own for each file and destination."""
        name = sha256(f"{source.resolve()} to {destination}".encode()).hexdigest()[:16]
        checkpoint = cls(folder / "publish" / f"{name}.json", source, destination)
        # Earlier versions left one for each process that was killed while it saved.
        checkpoint._left_behind += checkpoint.path.parent.glob(f"{name}.json.[0-9]*")
        return checkpoint

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._held = self._hold()
        except OSError as error:
            raise SettingError(
                f"The progress cannot be kept at {self.path} ({error.strerror}): name another file with "
                "--resume-file."
            ) from None
        for left in (self._unfinished, *self._left_behind):
            left.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_at_path(self._held) and not self.path.stat().st_size:
            self.remove()  # it was there to be held
        self._held.close()

    def load(self) -> ResumePoint | None:
        """What the last run saved; None if there is nothing to resume."""
        saved = self.path.read_bytes()
        try:
            return msgspec.json.decode(saved, type=ResumePoint) if saved else None
        except msgspec.MsgspecError:
            raise SettingError(f"{self.path} is no progress file, and is left alone: name another.") from None

    def misfit(self, point: ResumePoint, lines: Lines) -> str | None:
        """Why these are not the lines that `point` has as done; None if they are."""
        if point.lines_sha256:
            is_same = (lines.count, lines.sha256) == (point.done.line, point.lines_sha256)
        else:
            stat = self._source.stat()
            version = f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}"
            is_same = (point.publishes, point.file_version) == (self.publishes, version)
        if is_same:
            return None
        return f"the first {point.done.line:,} lines of {self._source} are not those that were published"

    def save(self, point: ResumePoint) -> None:
        """Replaces the last one whole, so that a crash leaves the one or the other."""
        unfinished = self._unfinished
        unfinished.unlink(missing_ok=True)
        held = unfinished.open("wb")
        fcntl.flock(held, fcntl.LOCK_EX)  # whoever finds it in its place finds it held
        held.write(msgspec.json.encode(point))
        held.flush()
        unfinished.replace(self.path)
        self._held.close()
        self._held = held

    def remove(self) -> None:
        """The file is done: the next run begins at its start."""
        self._unfinished.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    @property
    def _unfinished(self) -> Path:
        return self.path.with_name(f"{self.path.name}.new")

    def _hold(self) -> BinaryIO:
        """The file at `path`, held by this process alone until it is closed."""
        while True:
            held = self.path.open("ab")
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                held.close()
                raise Busy(
                    f"Another `callfunnel publish` is at it: {self.publishes}. Run this one again when that "
                    "one has ended."
                ) from None
            if self._is_at_path(held):
                return held
            held.close()  # another run replaced or removed it since it was opened

    def _is_at_path(self, file: BinaryIO) -> bool:
        try:
            return os.path.samestat(os.fstat(file.fileno()), self.path.stat())
        except FileNotFoundError:
            return False


def state_folder(environ: Mapping[str, str]) -> Path:
    """Where a user's programs keep what must outlive them (XDG base directories)."""
    home = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "callfunnel"

"""A file of events as the engine with these settings would judge it, and what its sender may have got wrong.

The law: the verdicts are the engine's on a partition that holds nothing yet, and memory does not grow with
the file.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from functools import lru_cache, partial
from typing import BinaryIO, Literal

import msgspec
from msgspec import Struct
from xxhash import xxh3_64_digest

from callfunnel.schemas.codec import Decoder, Limits, Rejected, too_large
from callfunnel.schemas.events import TYPES, Envelope, Event
from callfunnel.schemas.fields import fields
from callfunnel.streams.log import entry_of, identity, pack, pseudonym
from callfunnel.streams.tables import MOST_EVENTS, crowded

BATCH_LINES, BATCH_BYTES = 2_000, 4 * 2**20
MOST_HELD = 8_000_000
"""Of events that are known by twelve bytes each, in all leads; a lead itself takes as much as `_LEAD`."""
_IDENTITY, _MARK = 8, 12
_LEAD = 16
MOST_TOLD = 1_000
"""Misspelt names, and crowded leads, that are counted one by one."""

_PART = 65_536
_ALIKE = 0.8
_MOST_NAME = 64
_KNOWN = frozenset(name for cls in TYPES.values() for name in fields(cls))


class Line(Struct, frozen=True):
    """A record of a file. Of one that is too large, `value` is only the beginning."""

    number: int
    value: bytes
    size: int


def records(stream: BinaryIO, most_bytes: int) -> Iterator[Line]:
    """The records of a file. Blank lines are none; if the first is a lone bracket, the file is one record."""
    number = 0
    while value := stream.readline(most_bytes + 2):
        number += 1
        if number == 1 and value.strip() in (b"{", b"["):
            rest = iter(partial(stream.read, _PART), b"")
        else:
            rest = _rest_of_line(stream, value)
        skipped = 0
        for part in rest:
            if len(value) <= most_bytes:
                value += part
            else:
                skipped += len(part)
        value = value.rstrip(b"\r\n")
        if value.strip():
            yield Line(number, value, len(value) + skipped)


def _rest_of_line(stream: BinaryIO, part: bytes) -> Iterator[bytes]:
    while not part.endswith(b"\n") and (part := stream.readline(_PART)):
        yield part.rstrip(b"\r\n")


Taken = Literal["new", "copy", "conflicting", "crowded"]
"""A copy is exact, and changes nothing. A conflicting event has the id and the type of one that differs."""


class Crowd:
    """Counts the different events of each lead, as the tables do.

    Where that would be more than `most_held`, the leads with the fewest events are forgotten and begin again:
    a lead may then be crowded and not be found, but none is found that is not crowded.
    """

    def __init__(self, most_events: int = MOST_EVENTS, most_held: int = MOST_HELD) -> None:
        self.most_events = most_events
        self._most_held = most_held
        self._held = 0
        self._seen: dict[bytes, bytes] = {}
        self.forgot = False

    def take(self, event: Event) -> Taken:
        """What the tables would make of the event."""
        lead, entry = xxh3_64_digest(event.lead_id.encode()), entry_of(event)
        mark = xxh3_64_digest(repr(identity(entry)).encode()) + xxh3_64_digest(pack((entry,)))[:4]
        seen = self._seen.get(lead)
        if seen is None:
            seen = b""
            self._held += _LEAD
        elif _holds(seen, mark):
            return "copy"
        elif len(seen) >= _MARK * self.most_events:
            return "crowded"
        is_conflicting = _holds(seen, mark[:_IDENTITY])
        self._seen[lead] = seen + mark
        self._held += 1
        if self._held > self._most_held:
            self._forget()
        return "conflicting" if is_conflicting else "new"

    def _forget(self) -> None:
        self.forgot = True
        for lead in sorted(self._seen, key=lambda lead: len(self._seen[lead])):
            if self._held <= self._most_held // 2:
                break
            self._held -= _LEAD + len(self._seen.pop(lead)) // _MARK


def _holds(seen: bytes, start: bytes) -> bool:
    """Whether one of the marks that were put together begins so."""
    at = seen.find(start)
    while at > 0 and at % _MARK:
        at = seen.find(start, at + 1)
    return at >= 0


class CrowdedLead(Struct):
    """A lead with more events than one may have: its name in logs, its first line that is one too many."""

    lead: str
    first_refused_line: int
    refused: int = 0


class Misspelt(Struct):
    """A field that is not known, which a record has in place of one that is."""

    field: str
    meant: str
    lines: int = 0


class Validation:
    """Judges records and keeps what is to be said of all of them."""

    def __init__(self, limits: Limits, crowd: Crowd | None = None) -> None:
        self.accepted = 0
        self.refused: Counter[str] = Counter()
        self.first_ms: int | None = None
        self.last_ms: int | None = None
        self.copies = 0
        self.conflicting = 0
        self.first_conflicting_line: int | None = None
        self.crowd = crowd or Crowd()
        self._limits = limits
        self._decoder = Decoder(limits)
        self._names = msgspec.json.Decoder(dict[str, msgspec.Raw])
        self._crowded: dict[str, CrowdedLead] = {}
        self._misspelt: dict[tuple[str, str], Misspelt] = {}

    @property
    def crowded_leads(self) -> list[CrowdedLead]:
        """The worst first; `MOST_TOLD` at most."""
        return sorted(self._crowded.values(), key=lambda one: -one.refused)

    @property
    def misspelt(self) -> list[Misspelt]:
        """The most frequent first; `MOST_TOLD` at most."""
        return sorted(self._misspelt.values(), key=lambda one: -one.lines)

    def judge(self, lines: Sequence[Line], now_ms: int) -> Iterator[tuple[int, Rejected]]:
        """Judge records as if they were published at this moment; those that are refused, by their lines."""
        values = [line.value for line in lines]
        verdicts = self._decoder.decode_all(values, [None] * len(lines), [now_ms] * len(lines))
        for line, verdict in zip(lines, verdicts, strict=True):
            if line.size > self._limits.max_bytes:
                verdict = too_large(line.size, self._limits)
            else:
                self._look_at_names(line.value, None if isinstance(verdict, Rejected) else type(verdict))
            if not isinstance(verdict, Rejected):
                verdict = self._take(verdict, line.number)
            if isinstance(verdict, Rejected):
                self.refused[verdict.reason] += 1
                yield line.number, verdict
                continue
            self.accepted += 1
            at_ms = verdict.at_ms
            self.first_ms = at_ms if self.first_ms is None else min(self.first_ms, at_ms)
            self.last_ms = at_ms if self.last_ms is None else max(self.last_ms, at_ms)

    def _take(self, event: Event, line: int) -> Event | Rejected:
        taken = self.crowd.take(event)
        if taken == "crowded":
            return self._crowd(event, line)
        self.copies += taken == "copy"
        if taken == "conflicting":
            self.conflicting += 1
            self.first_conflicting_line = self.first_conflicting_line or line
        return event

    def _crowd(self, event: Event, line: int) -> Rejected:
        name = pseudonym(event.lead_id.encode())
        if name in self._crowded or len(self._crowded) < MOST_TOLD:
            self._crowded.setdefault(name, CrowdedLead(name, line)).refused += 1
        return crowded(self.crowd.most_events)

    def _look_at_names(self, value: bytes, cls: type[Envelope] | None) -> None:
        try:
            names = self._names.decode(value).keys()
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            return
        for name in names:
            meant = None if name in _KNOWN else _meant(name, cls)
            if meant is None or meant in names:
                continue
            if (name, meant) in self._misspelt or len(self._misspelt) < MOST_TOLD:
                self._misspelt.setdefault((name, meant), Misspelt(name, meant)).lines += 1


def batches(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """The lines in parts that fit into memory."""
    batch: list[Line] = []
    size = 0
    for line in lines:
        batch.append(line)
        size += len(line.value)
        if len(batch) >= BATCH_LINES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


@lru_cache(4_096)
def _meant(name: str, cls: type[Envelope] | None) -> str | None:
    """The known field, of this type of event or of any, that a name looks like."""
    if len(name) > _MOST_NAME or not name.isprintable():
        return None
    plain = {_plain(known): known for known in (fields(cls) if cls else _KNOWN)}
    close = get_close_matches(_plain(name), plain, 1, _ALIKE)
    return plain[close[0]] if close else None


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()

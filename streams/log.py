"""A lead is its log: every event of it that was accepted, once, in a few bytes each.

The law here: a log is a *set* of entries. Equal sets have equal bytes, in whatever order, how often and in
which batches the events arrived, and everything a lead adds to the tables follows from the set
(`streams.definition`). Event ids and call ids are kept as fingerprints of 64 bits. The format is in
`streams/README.md`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from xxhash import xxh3_64_intdigest

from callfunnel.schemas.events import (
    TYPES,
    AppointmentHeld,
    CallEnded,
    Connect,
    Disqualified,
    Envelope,
    LeadCreated,
    Lost,
    ProposalSent,
    Qualified,
    Retracted,
    RevenueAdjusted,
    Touch,
    Won,
)
from callfunnel.schemas.money import minor_units

Own = int | str | None
"""The value of a field that only some types have; None where it is missing."""


class Entry(NamedTuple):
    """An event as its lead's log keeps it. The order of the fields decides between conflicting copies."""

    at_ms: int
    rank: int
    """The place of its type in the catalogue."""
    mark: int
    """The fingerprint of its event id."""
    call: int | None
    """The fingerprint of its call id."""
    campaign: str | None
    source: str | None
    location: str | None
    team: str | None
    agent: str | None
    own: tuple[Own, ...]
    """The fields of its type, in the order of `OWN`."""


class OwnField(NamedTuple):
    """How a log keeps a field that only some types have."""

    name: str
    kind: Literal["choice", "flag", "text", "mark", "money", "currency", "seconds"]
    """A mark is kept as the fingerprint of an id, money in minor units, seconds in whole milliseconds."""
    given_as: str
    """The field of the event."""
    read: Callable[[Any], Own]
    choices: tuple[str, ...] = ()
    """Of a choice, which is kept as its place here: only ever added to."""
    unsaid: str = ""
    """A choice that means the same as none, and is kept as none."""


LONGEST_MS = 2**53 - 1
"""Longer talks are cut: the largest number that every JSON reader holds exactly."""

RETRACTABLE = tuple(name for name in TYPES if name != "retracted")
"""The types that `retracts_type` may name, by their places in logs."""


def fingerprint(text: str) -> int:
    """64 bits that stand for an id in its lead's log: two ids are alike once in 2⁶⁴ pairs."""
    return xxh3_64_intdigest(text.encode())


def _choice(name: str, *choices: str, unsaid: str = "") -> OwnField:
    places: Mapping[str | None, int] = {value: place for place, value in enumerate(choices)}
    return OwnField(name, "choice", name, lambda event: places.get(getattr(event, name)), choices, unsaid)


def _flag(name: str) -> OwnField:
    return OwnField(name, "flag", name, lambda event: 1 if getattr(event, name) else None)


def _text(name: str) -> OwnField:
    return OwnField(name, "text", name, lambda event: getattr(event, name))


def _mark(name: str) -> OwnField:
    def read(event: Any) -> int | None:
        id_ = getattr(event, name)
        return None if id_ is None else fingerprint(id_)

    return OwnField(name, "mark", name, read)


def _money(name: str) -> OwnField:
    def read(event: Any) -> int | None:
        amount = getattr(event, name)
        return None if amount is None else minor_units(amount, event.currency, is_signed=True)

    return OwnField(name, "money", name, read)


_CURRENCY = OwnField("currency", "currency", "currency", lambda event: event.currency)


def whole_ms(seconds: float) -> int:
    """As milliseconds, rounded down as the number is written: 16.06 s are 16,060 ms, not 16,059."""
    ms = int(min(seconds * 1000, LONGEST_MS))
    if (ms + 1) / 1000 <= seconds and ms < LONGEST_MS:
        return ms + 1
    return ms - 1 if ms / 1000 > seconds else ms


def _talk_ms(event: CallEnded) -> int | None:
    seconds = event.talk_seconds
    return None if seconds is None else whole_ms(seconds)


OWN: Mapping[type[Envelope], tuple[OwnField, ...]] = {
    LeadCreated: (_flag("imported"),),
    Connect: (
        _choice("answered_by", "human", "machine", unsaid="unknown"),
        _choice("direction", "inbound", unsaid="outbound"),
    ),
    Qualified: (_money("expected_amount"), _CURRENCY),
    Won: (
        _money("amount"),
        _CURRENCY,
        _choice("sale_kind", "new", "upsell", "cross_sell", "renewal"),
        _text("product"),
        _text("segment"),
    ),
    CallEnded: (
        OwnField("talk_ms", "seconds", "talk_seconds", _talk_ms),
        _choice("hangup_by", "customer", "agent", "system"),
    ),
    Disqualified: (_text("reason"),),
    Lost: (_text("reason"),),
    Retracted: (_mark("retracts"), _choice("retracts_type", *RETRACTABLE)),
    AppointmentHeld: (_choice("outcome", "no_show", "cancelled", unsaid="held"),),
    ProposalSent: (_money("amount"), _CURRENCY),
    Touch: (
        _choice("channel", "email", "sms", "chat", "meeting", "mail", "video", "social", "visit"),
        _flag("automated"),
    ),
    RevenueAdjusted: (_money("amount"), _CURRENCY, _mark("adjusts")),
}
"""The own fields of each type; at most eight."""

KINDS = tuple(TYPES.values())
"""The types by rank."""

_OWN = tuple(OWN.get(kind, ()) for kind in KINDS)
_CONNECT = Connect.rank


def entry_of(event: Envelope) -> Entry:
    own = OWN.get(type(event))
    return Entry(
        event.at_ms,
        event.rank,
        fingerprint(event.event_id),
        fingerprint(event.call_id) if event.call_id else None,
        event.campaign or None,
        event.source or None,
        event.location or None,
        event.team or None,
        event.agent or None,
        tuple(field.read(event) for field in own) if own else (),
    )


def order(entry: Entry) -> tuple[object, ...]:
    """What entries are sorted by: time, type and mark; of equal ones what is missing comes first."""
    at_ms, rank, mark, *rest, own = entry
    return at_ms, rank, mark, *((value is not None, value or 0) for value in (*rest, *own))


def identity(entry: Entry) -> tuple[object, ...]:
    """What makes two entries copies of one event.

    Many call systems have one id for a whole call and give it to its dial, its connect and its end; so it is
    the id and the type, and of a connect who answered, because a machine is often noticed after the connect,
    and which way the call went.
    """
    return entry.mark, entry.rank, entry.own if entry.rank == _CONNECT else ()


def in_force(log: Sequence[Entry]) -> list[Entry]:
    """Of copies that contradict each other, the first in the order; of other entries, all."""
    smallest: dict[tuple[object, ...], Entry] = {}
    for entry in log:
        smallest.setdefault(identity(entry), entry)
    return list(smallest.values()) if len(smallest) < len(log) else list(log)


def joined(log: Sequence[Entry], more: Iterable[Entry]) -> list[Entry]:
    """The log with more entries, in its order."""
    return sorted((*log, *more), key=order)


# Bytes: `streams/README.md` has the format.

_FORMAT = b"\x01"
_HAS_OWN, _HAS_CALL, _OTHER_DIMENSIONS, _RANK = 0x20, 0x40, 0x80, 0x1F


def _dimensions(entry: Entry) -> tuple[str | None, ...]:
    return entry.campaign, entry.source, entry.location, entry.team, entry.agent


def pack(log: Sequence[Entry]) -> bytes:
    """The record of a log whose entries are in order."""
    out = bytearray(_FORMAT)
    texts: dict[str, int] = {}
    calls: dict[int, int] = {}
    before_ms = 0
    before: Sequence[str | None] = (None,) * 5

    def number(n: int) -> None:
        while n > 0x7F:
            out.append(n & 0x7F | 0x80)
            n >>= 7
        out.append(n)

    def text(value: str | None) -> None:
        if value is None:
            return number(0)
        if value in texts:
            return number(texts[value])
        texts[value] = len(texts) + 1
        number(len(texts))
        data = value.encode()
        number(len(data))
        out.extend(data)

    for entry in log:
        dimensions = _dimensions(entry)
        own = [(place, value) for place, value in enumerate(entry.own) if value is not None]
        out.append(
            entry.rank
            | (_HAS_OWN if own else 0)
            | (_HAS_CALL if entry.call is not None else 0)
            | (_OTHER_DIMENSIONS if dimensions != before else 0)
        )
        number(entry.at_ms - before_ms)
        before_ms = entry.at_ms
        out.extend(entry.mark.to_bytes(8, "little"))
        if dimensions != before:
            other = [place for place in range(5) if dimensions[place] != before[place]]
            out.append(sum(1 << place for place in other))
            for place in other:
                text(dimensions[place])
            before = dimensions
        if entry.call is not None:
            is_new = entry.call not in calls
            number(calls.setdefault(entry.call, len(calls)))
            if is_new:
                out.extend(entry.call.to_bytes(8, "little"))
        if own:
            out.append(sum(1 << place for place, _ in own))
            for place, value in own:
                if isinstance(value, str):
                    text(value)
                elif _OWN[entry.rank][place].kind == "mark":
                    out.extend(value.to_bytes(8, "little"))
                else:
                    number(value << 1 if value >= 0 else (-value << 1) - 1)
    return bytes(out)


class _Reader:
    """What is left of a record's bytes."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        taken = self._data[self._at : self._at + size]
        if len(taken) < size:
            raise ValueError("not a lead's record: it ends in the middle of an entry")
        self._at += size
        return taken

    def byte(self) -> int:
        return self.take(1)[0]

    def fingerprint(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def number(self) -> int:
        n = shift = 0
        while True:
            byte = self.byte()
            n |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
            if shift > 63:
                raise ValueError("not a lead's record: a number is too large")
        if n >> 64:
            raise ValueError("not a lead's record: a number is too large")
        return n


def unpack(record: bytes) -> list[Entry]:
    """The entries of a record, in order. Raises ValueError where it is none."""
    data = _Reader(record)
    if data.take(1) != _FORMAT:
        raise ValueError("not a lead's record: its format is another")
    texts: list[str] = []
    calls: list[int] = []
    log: list[Entry] = []
    at_ms = 0
    dimensions: list[str | None] = [None] * 5

    def text() -> str | None:
        place = data.number()
        if place == 0:
            return None
        if place == len(texts) + 1:
            texts.append(data.take(data.number()).decode())
        elif place > len(texts):
            raise ValueError("not a lead's record: it names a text that it does not hold")
        return texts[place - 1]

    def call() -> int:
        place = data.number()
        if place == len(calls):
            calls.append(data.fingerprint())
        elif place > len(calls):
            raise ValueError("not a lead's record: it names a call that it does not hold")
        return calls[place]

    def integer() -> int:
        n = data.number()
        return n >> 1 if n & 1 == 0 else -(n + 1 >> 1)

    def own_of(field: OwnField) -> Own:
        if field.kind in ("text", "currency"):
            return text()
        if field.kind == "mark":
            return data.fingerprint()
        n = integer()
        is_known = {"choice": 0 <= n < len(field.choices), "flag": n == 1}.get(field.kind, True)
        if not is_known:
            raise ValueError("not a lead's record: a field has a choice that this version does not know")
        return n

    while data:
        head = data.byte()
        rank = head & _RANK
        if rank >= len(KINDS):
            raise ValueError("not a lead's record: an event has a type that this version does not know")
        at_ms += data.number()
        if at_ms >> 63:
            raise ValueError("not a lead's record: a time is too large")
        mark = data.fingerprint()
        if head & _OTHER_DIMENSIONS:
            other = data.byte()
            if other >> 5:
                raise ValueError("not a lead's record: there are five dimensions")
            for place in range(5):
                if other >> place & 1:
                    dimensions[place] = text()
        its_call = call() if head & _HAS_CALL else None
        own: tuple[Own, ...] = (None,) * len(_OWN[rank])
        if head & _HAS_OWN:
            present = data.byte()
            if present >> len(own):
                raise ValueError("not a lead's record: an event has fields that its type does not have")
            own = tuple(
                own_of(field) if present >> place & 1 else None for place, field in enumerate(_OWN[rank])
            )
        campaign, source, location, team, agent = dimensions
        log.append(Entry(at_ms, rank, mark, its_call, campaign, source, location, team, agent, own))
    if not log:
        raise ValueError("not a lead's record: it is empty")
    return log


def pseudonym(lead_id: bytes) -> str:
    """What logs call a lead: five hex digits tell leads apart, and are too few to find out whose id it is."""
    return f"{xxh3_64_intdigest(lead_id) >> 44:05x}"

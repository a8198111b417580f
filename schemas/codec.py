"""Bytes of a record to an event, or to the reason why not: the only gate into callfunnel.

The law: the verdict depends on the record and the limits alone, never on the moment or on a record's
neighbours in a batch, so that `callfunnel validate` and the engine agree; and no bytes make the gate raise.

Ordinary records take one typed decode and a few looks at their bytes. What that does not settle is judged in
full by the same rules. Of a repeated key the last value counts; null, and "" in an optional field, mean that
the field is missing; unknown fields are ignored.

The core reads ordinary records by itself (`streams/core/src/record.rs`): a rule that gets stricter here does
so there.
"""

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from difflib import get_close_matches
from math import isfinite
from types import NoneType
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from callfunnel.schemas.events import FIRST_MS, TYPES, VERSION, Envelope, Event
from callfunnel.schemas.fields import fields

CROWDED = "crowded_lead"
"""The reason that the tables give: how many events a lead has only they know."""

ARCHIVED = "archived"
"""The reason that the tables give for events of days that they keep no more."""

REASONS = {
    "too_large": "the value is larger than the limit",
    "not_utf8": "the value is not UTF-8 text",
    "too_deep": "arrays and objects are nested deeper than the limit",
    "not_json": "the value is not JSON: no value at all, a schema registry's binary format, a syntax error",
    "not_an_object": "the value is JSON, but not an object",
    "unsupported_version": "schema_version is newer than this contract",
    "unknown_type": "type is none of the catalogue",
    "missing_field": "a required field is missing",
    "wrong_type": "a field has the wrong JSON type",
    "bad_value": "a field has the right JSON type, but breaks a rule",
    "key_mismatch": "the record has a key, and it is not lead_id",
    "from_the_future": "occurred_at is ahead of the record's own time by more than the limit, "
    "or later than a replay's bound",
    "too_old": "occurred_at is behind the record's own time by more than the limit",
    "misrouted": "a worker moved the record, and it is not where these tables count its lead",
    "unreadable": "the record, or the batch it was sent in, cannot be unpacked",
    ARCHIVED: "what happened so long ago is archived: its leads are counted for good, and not kept",
    CROWDED: "the lead has as many events as one lead may have: its id stands for many leads",
}
"""Why a record is refused. Where several reasons hold, the first in this order is given."""

UNREADABLE = "unreadable"
"""The reason that whoever unpacks record batches gives: such a record never comes to the decoder."""

NOT_OF_THE_GATE = frozenset({"misrouted", UNREADABLE, ARCHIVED, CROWDED})
"""The reasons that the gate never gives: they depend on the tables, or on how records were packed."""

_DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_MS = (datetime(2101, 1, 1, tzinfo=UTC) - _EPOCH).days * _DAY_MS - 1

# C0, DEL and C1, line separators, marks that turn the direction of text, lone surrogates.
_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NOT_BRACKETS = bytes(set(range(256)) - set(b"{}[]"))
_BACKSLASH, _BRACKET, _BRACE, _DEL = b"\\[{\x7f"
_UNREADABLE = (msgspec.MsgspecError, UnicodeError)
_PRECEDENCE = {reason: place for place, reason in enumerate(REASONS)}
_UNITS = {"days": _DAY_MS, "hours": 3_600_000, "minutes": 60_000, "seconds": 1000}


class Rejected(Struct, frozen=True):
    """A refused record: `reason` is a key of `REASONS`, `detail` a sentence without any of its values."""

    reason: str
    detail: str


class Limits(Struct, frozen=True):
    """What a record may be.

    With the clock "event" (a replay of history) the record's own time says nothing: no event is too old, and
    an event is from the future when it is later than `until_ms`.
    """

    max_bytes: int = 65_536
    max_depth: int = 8
    future_ms: int = 300_000
    retention_ms: int = 400 * _DAY_MS
    clock: Literal["wall", "event"] = "wall"
    until_ms: int | None = None
    """The last moment that a replay takes; None: there is none."""

    def of_history(self, now_ms: int) -> "Limits":
        """What a replay that is sent at `now_ms` may hold: without a bound, no event that is later than now.

        Tables that exist have a bound of their own, which is never later.
        """
        return replace(self, clock="event", until_ms=now_ms if self.until_ms is None else self.until_ms)


def too_large(size: int, limits: Limits) -> Rejected:
    """The verdict on a value of so many bytes, which need not be at hand."""
    return Rejected("too_large", f"the value has {size} bytes, allowed are {limits.max_bytes}")


class Decoder:
    """Judges records by their bytes and their own time. A time of -1 means there is none to judge by."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._typed = msgspec.json.Decoder(Event)

    def until(self, until_ms: int | None) -> "Decoder":
        """The same, of a replay that takes events up to then."""
        limits = self.limits
        return self if until_ms == limits.until_ms else Decoder(replace(limits, until_ms=until_ms))

    def decode(self, value: bytes | None, key: bytes | None, timestamp_ms: int) -> Event | Rejected:
        return self.decode_all((value,), (key,), (timestamp_ms,))[0]

    def decode_all(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], timestamps: Sequence[int]
    ) -> list[Event | Rejected]:
        """One verdict for each record, in their order."""
        verdicts: list[Event | Rejected] = []
        give, typed, max_bytes = verdicts.append, self._typed.decode, self.limits.max_bytes
        earliest_ms, latest_ms = self.bounds_ms(timestamps)
        earliest, latest = (_EPOCH + timedelta(milliseconds=ms) for ms in (earliest_ms, latest_ms))
        for value, key, timestamp_ms in zip(values, keys, timestamps, strict=True):
            try:
                if value is not None and len(value) <= max_bytes and _is_plain(value):
                    event = typed(value)
                    at = event.occurred_at
                    if key is None or key == event.lead_id.encode():
                        timely = (
                            earliest <= at <= latest
                            if type(at) is datetime
                            else earliest_ms <= at <= latest_ms
                        )
                        give(event if timely else self._in_time(event, timestamp_ms))
                        continue
            except _UNREADABLE:
                pass
            give(self._judge(value, key, timestamp_ms))
        return verdicts

    def bounds_ms(self, timestamps: Sequence[int]) -> tuple[int, int]:
        """From when to when, both inclusive, an event is in time for every record of a batch."""
        limits = self.limits
        if limits.clock == "event":
            return 0, _LAST_MS if limits.until_ms is None else min(limits.until_ms, _LAST_MS)
        known = [ms for ms in timestamps if ms >= 0]
        if not known:
            return 0, _LAST_MS
        earliest_ms, latest_ms = max(known) - limits.retention_ms, min(known) + limits.future_ms
        return min(max(earliest_ms, 0), _LAST_MS + 1), min(latest_ms, _LAST_MS)

    def _judge(self, value: bytes | None, key: bytes | None, timestamp_ms: int) -> Event | Rejected:
        limits = self.limits
        if value is None:
            return Rejected("not_json", "the record has no value (a tombstone): publish only events")
        if len(value) > limits.max_bytes:
            return too_large(len(value), limits)
        if value[:1] == b"\0":
            return Rejected("not_json", "the value is a schema registry's binary format: publish plain JSON")
        try:
            text = value.decode()
        except UnicodeDecodeError as error:
            return Rejected("not_utf8", f"the value stops being UTF-8 at byte {error.start}")
        if _is_deeper(value, limits.max_depth):
            return Rejected(
                "too_deep", f"the value is nested deeper than {limits.max_depth}, the most allowed"
            )
        try:
            content = _JSON.decode(text)
        except json.JSONDecodeError as error:
            problem = error.msg.partition(":")[0]
            return Rejected("not_json", f"the value stops being JSON at character {error.pos} ({problem})")
        except _NotJSONError as error:
            return Rejected("not_json", f"{error} is not JSON: leave out a field that has no value")
        if not isinstance(content, dict):
            kind = _KINDS[type(content)]
            return Rejected("not_an_object", f"the value is {kind}: publish one JSON object in each record")
        event = _event(content)
        if isinstance(event, Rejected):
            return event
        if key is not None and key != event.lead_id.encode():
            return Rejected("key_mismatch", "the record's key must be `$.lead_id` in bare UTF-8, and is not")
        return self._in_time(event, timestamp_ms)

    def _in_time(self, event: Event, timestamp_ms: int) -> Event | Rejected:
        limits, at_ms = self.limits, event.at_ms
        if not 0 <= at_ms <= _LAST_MS:
            return Rejected("bad_value", "`$.occurred_at` must be in the years 1970 to 2100, and is not")
        if limits.clock == "event" and limits.until_ms is not None and at_ms > limits.until_ms:
            return Rejected(
                "from_the_future",
                f"`$.occurred_at` is after {moment(limits.until_ms)}, up to which this replay takes events "
                "(CALLFUNNEL_REPLAY_UNTIL): check the sender's clock; a later bound needs new tables",
            )
        if limits.clock == "event" or timestamp_ms < 0:
            return event
        ahead_ms = at_ms - timestamp_ms
        if ahead_ms > limits.future_ms:
            return Rejected(
                "from_the_future",
                f"`$.occurred_at` is {_span(ahead_ms)} ahead of the record's own time, "
                f"allowed are {_span(limits.future_ms)}: check the sender's clock and time zone",
            )
        if -ahead_ms > limits.retention_ms:
            return Rejected(
                "too_old",
                f"`$.occurred_at` is {_span(-ahead_ms)} behind the record's own time, "
                f"allowed are {_span(limits.retention_ms)}",
            )
        return event


def _is_plain(value: bytes) -> bool:
    """Whether, by its bytes alone, nothing in it is nested and no string can hold a forbidden character."""
    return (
        _BACKSLASH not in value
        and _BRACKET not in value
        and _BRACE not in value[1:]
        and ((value.isascii() and _DEL not in value) or value.decode().isprintable())
    )


def _is_deeper(value: bytes, limit: int) -> bool:
    """Whether anything is nested deeper. Seen before parsing: a parser's own limit varies by caller."""
    if value.count(b"{") + value.count(b"[") <= limit:
        return False
    depth = 0
    for bracket in _STRING.sub(b"", value).translate(None, _NOT_BRACKETS):
        depth += 1 if bracket in b"{[" else -1
        if depth > limit:
            return True
    return False


class _NotJSONError(Exception):
    """A literal that Python reads as JSON, and nobody else."""


class _Huge(Struct, frozen=True):
    """Stands for a number that no field can hold."""


_KINDS = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    _Huge: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
    NoneType: "null",
}


def _integer(digits: str) -> int | _Huge:
    return int(digits) if isfinite(float(digits)) else _Huge()


def _number(digits: str) -> float | _Huge:
    number = float(digits)
    return number if isfinite(number) else _Huge()


def _refuse(literal: str) -> None:
    raise _NotJSONError(literal)


_JSON = json.JSONDecoder(parse_int=_integer, parse_float=_number, parse_constant=_refuse)


def _event(content: dict[str, Any]) -> Event | Rejected:
    given = {name: value for name, value in content.items() if value is not None}
    version, name = given.get("schema_version"), given.get("type")
    if isinstance(version, _Huge) or (type(version) is int and version > VERSION):
        return Rejected("unsupported_version", f"`$.schema_version` must be {VERSION}, and is newer")
    if isinstance(name, str) and name not in TYPES:
        close = get_close_matches(name[:64], TYPES, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        return Rejected("unknown_type", f"`$.type` must be one of {', '.join(TYPES)}, and is another{hint}")
    cls = TYPES[name] if isinstance(name, str) else Envelope
    known = fields(cls)
    empty = {
        name for name, value in given.items() if value == "" and name in known and not known[name].required
    }
    given = {name: given[name] for name in known if name in given and name not in empty}
    broken = ""
    if cls is not Envelope and not any(_forbidden(value) for value in given.values()):
        try:
            return cast(Event, msgspec.convert(given, cls))
        except msgspec.ValidationError as error:
            broken = str(error.__cause__)
    faults = _faults(cls, given)
    return min(faults, key=lambda fault: _PRECEDENCE[fault.reason], default=Rejected("bad_value", broken))


def _faults(cls: type[Envelope], given: dict[str, Any]) -> list[Rejected]:
    """What is wrong with each field by itself, and what is missing."""
    known = fields(cls)
    needed = {name for name in known if known[name].required}
    if given.keys() & {*cls.together}:
        needed |= {*cls.together}
    faults = []
    if cls.one_of and not given.keys() & {*cls.one_of}:
        names = " or ".join(f"`$.{name}`" for name in cls.one_of)
        faults.append(Rejected("missing_field", f"{names} must be given, and none of them is"))
    for name, field in known.items():
        if name not in given:
            if name in needed:
                faults.append(
                    Rejected("missing_field", f"`$.{name}` must be {field.must_be}, and is missing")
                )
            continue
        value = given[name]
        kind = _KINDS[type(value)]
        if kind not in field.kinds:
            faults.append(Rejected("wrong_type", f"`$.{name}` must be {field.must_be}, and is {kind}"))
        elif found := _forbidden(value):
            character = f"U+{ord(found[0]):04X}"
            faults.append(Rejected("bad_value", f"`$.{name}` must not contain control character {character}"))
        elif not field.accepts(value):
            is_not = f"this {kind.split()[1]} is not"
            if name == "occurred_at" and isinstance(value, int) and 0 <= value < FIRST_MS:
                is_not += ": send milliseconds, not seconds"
            faults.append(Rejected("bad_value", f"`$.{name}` must be {field.must_be}, and {is_not}"))
    return faults


def _forbidden(value: object) -> re.Match[str] | None:
    return _FORBIDDEN.search(value) if isinstance(value, str) and not value.isprintable() else None


def moment(at_ms: int) -> str:
    """A moment in RFC 3339."""
    return (_EPOCH + timedelta(milliseconds=at_ms)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _span(span_ms: int) -> str:
    """A duration in the largest unit of which it has at least two."""
    for unit, unit_ms in _UNITS.items():
        if span_ms >= 2 * unit_ms:
            return f"{span_ms // unit_ms} {unit}"
    return f"{span_ms} milliseconds"

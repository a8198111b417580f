"""Records as they should not be, and some odd ones that are fine: each field, each rule, each limit.

The law: every case names what must become of it, written down by hand from `schemas/README.md`: the reason of
its refusal, or `None`, applied. The decoder is never asked.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import orjson

from callfunnel.schemas.events import TYPES
from contract.batches import PACK, assembled, record

Event = dict[str, Any]


class Case(NamedTuple):
    name: str
    value: bytes | None
    key: bytes | None
    reason: str | None
    """Why it must be refused; None: it is applied."""


MORE: dict[str, Event] = {
    "connect": {"answered_by": "human"},
    "qualified": {"expected_amount": "100.00", "currency": "EUR"},
    "won": {"amount": "99.90", "currency": "EUR"},
    "call_ended": {"talk_seconds": 12.5, "hangup_by": "customer"},
    "disqualified": {"reason": "no need"},
    "lost": {"reason": "price"},
    "lead_created": {"imported": False},
    "retracted": {"retracts": "id of another", "retracts_type": "won"},
    "appointment_held": {"outcome": "no_show"},
    "proposal_sent": {"amount": "99.90", "currency": "EUR"},
    "touch": {"channel": "email", "automated": True},
    "revenue_adjusted": {"amount": "-9.90", "currency": "EUR", "adjusts": "id of another"},
}
NEEDED = {"retracted": ("retracts",), "touch": ("channel",), "revenue_adjusted": ("amount", "currency")}
"""Of those, the fields that have to be there."""
IDENTITIES = ("event_id", "lead_id")
DIMENSIONS = ("campaign", "source", "agent", "team", "location", "call_id")
FORBIDDEN = {
    "nul": "\x00", "newline": "\n", "delete": "\x7f", "c1": "\x85",
    "line-separator": "\u2028", "turns-around": "\u202e", "isolate": "\u2066", "arabic-mark": "\u061c",
}  # fmt: skip
NO_STRINGS: dict[str, Any] = {
    "integer": 7, "number": 1.5, "boolean": True, "array": ["a"], "object": {"a": 1}, "empty-array": [],
}  # fmt: skip


def good(kind: str, name: str, at_ms: int) -> Event:
    """An event of this type that breaks no rule."""
    return {
        "event_id": f"id {name}"[:64],
        "type": kind,
        "occurred_at": at_ms,
        "lead_id": f"lead {name}"[:64],
        "campaign": "spring",
        "source": "web",
        "agent": "a-1",
        "team": "north",
        "location": "leeds",
        "call_id": f"call {name}"[:64],
        **MORE.get(kind, {}),
    }


def cases(at_ms: int) -> list[Case]:
    """All of them; `at_ms` is the record's own time."""
    return [case for part in (_bytes, _types, _fields, _values, _times, _keys) for case in part(at_ms)]


def _case(name: str, event: Event, reason: str | None) -> Case:
    lead = event.get("lead_id")
    key = lead.encode() if isinstance(lead, str) and lead.isprintable() and lead else name.encode()
    return Case(name, orjson.dumps(event), key, reason)


def _bytes(at_ms: int) -> Iterator[Case]:
    """Bytes that are not JSON, or not an object, or too much."""

    def case(name: str, value: bytes | None, reason: str | None) -> Case:
        return Case(name, value, f"lead {name}"[:64].encode(), reason)

    def text(name: str) -> bytes:
        return orjson.dumps(good("dial", name, at_ms))

    not_json = {
        "empty": b"", "space": b" ", "brace": b"{", "open-string": b'{"', "no-value": b'{"type":}',
        "nothing-but-a-comma": b",",
        "two-commas": b'{"a":1,,"b":2}', "no-colon": b'{"a" 1}', "single-quotes": b"{'a':1}",
        "bare-name": b"{a:1}", "trailing-data": text("trailing-data") + b"x",
        "two-events": text("a") + text("b"),
        "trailing-comma": text("trailing-comma")[:-1] + b",}", "comment": b"/* dial */" + text("comment"),
        "cut-off": text("cut-off")[:-20], "nan": b'{"talk_seconds":NaN}',
        "infinity": b'{"talk_seconds":Infinity}',
        "minus-infinity": b'{"talk_seconds":-Infinity}', "hexadecimal": b'{"a":0x10}',
        "leading-zero": b'{"a":01}',
        "plus": b'{"a":+1}', "point-alone": b'{"a":.5}', "point-at-end": b'{"a":5.}',
        "exponent-alone": b'{"a":1e}',
        "half-escape": b'{"a":"\\u12"}', "bad-escape": b'{"a":"\\x41"}', "raw-newline": b'{"a":"\n"}',
        "raw-tab": b'{"a":"\t"}', "True": b'{"a":True}',
        "undefined": b'{"a":undefined}', "yaml": b"type: dial",
        "xml": b"<event type='dial'/>", "csv": b"dial,lead-1,2025-03-01", "form": b"type=dial&lead_id=1",
        "bom": b"\xef\xbb\xbf" + text("bom"), "registry": b"\x00\x00\x00\x00\x07" + text("registry"),
        "protobuf": b"\x0a\x04dial", "newline-first": b"\n\n",
        "semicolon": b'{"a":1;"b":2}', "minus": b'{"a":-}',
        "closing-only": b"}", "wrong-bracket": b'{"a":[1}', "unclosed-array": b'{"a":[1',
    }  # fmt: skip
    for name, value in not_json.items():
        yield case(f"not-json {name}", value, "not_json")
    yield case("tombstone", None, "not_json")
    for name, value in {
        "latin-1": text("latin-1").replace(b"leeds", "Köln".encode("latin-1")),
        "utf-16": text("utf-16").decode().encode("utf-16"),
        "utf-16-be": b"\xfe\xff" + text("utf-16-be").decode().encode("utf-16-be"),
        "overlong": text("overlong").replace(b"leeds", b"\xc0\xaf"),
        "surrogate-bytes": text("surrogate-bytes").replace(b"leeds", b"\xed\xa0\x80"),
        "beyond-unicode": text("beyond-unicode").replace(b"leeds", b"\xf5\x80\x80\x80"),
        "lone-continuation": text("lone-continuation").replace(b"leeds", b"\x80"),
        "cut-character": text("cut-character").replace(b"leeds", b"\xc3"),
        "gzip": b"\x1f\x8b\x08\x00" + bytes(range(128, 160)),
        "avro-file": b"Obj\x01\x04\x14avro.codec\xff",
    }.items():
        yield case(f"not-utf8 {name}", value, "not_utf8")
    for name, value in {
        "array": b"[" + text("array") + b"]", "empty-array": b"[]", "string": b'"dial"', "integer": b"7",
        "number": b"1.5", "true": b"true", "null": b"null",
        "string-of-json": orjson.dumps(text("x").decode()),
        "exponent": b"1e5", "minus-zero": b"-0",
    }.items():  # fmt: skip
        yield case(f"not-an-object {name}", value, "not_an_object")
    for depth in (9, 10, 64, 1_000, 20_000):
        arrays = (depth - 1) * b"[" + (depth - 1) * b"]"
        yield case(f"too-deep {depth}", b'{"note":' + arrays + b"}", "too_deep")
    nested = good("dial", "deep 8", at_ms) | {"note": [[[[[[[]]]]]]]}
    yield _case("deep 8", nested, None)
    for size in (65_537, 100_000, 600_000):
        value = orjson.dumps(good("dial", f"large {size}", at_ms) | {"note": "x" * size})
        yield case(f"too-large {size}", value, "too_large")
    exactly = orjson.dumps(good("dial", "as large as allowed", at_ms) | {"note": ""})
    exactly = exactly[:-2] + b"x" * (65_536 - len(exactly)) + b'"}'
    yield Case("as large as allowed", exactly, b"lead as large as allowed", None)
    yield case("too-large garbage", b"\xff" * 65_537, "too_large")
    many = good("dial", "many fields", at_ms) | {f"field {n}": n for n in range(2_000)}
    yield _case("many fields", many, None)
    spaces = b"  \r\n\t" + text("spaces around") + b"\n \n"
    yield Case("spaces around", spaces, b"lead spaces around", None)
    twice = text("twice")[:-1] + b',"type":"connect"}'
    yield Case("the last of a repeated key counts", twice, b"lead twice", None)
    escaped = text("escaped").replace(b"spring", b"spr\\u0069ng")
    yield Case("an escaped letter is that letter", escaped, b"lead escaped", None)
    for name, number in {"huge-integer": b"9" * 400, "huge-exponent": b"1e999", "tiny": b"1e-999"}.items():
        unknown = text(name)[:-1] + b',"note":' + number + b"}"
        yield Case(f"unknown field {name}", unknown, f"lead {name}".encode(), None)


def _types(at_ms: int) -> Iterator[Case]:
    for kind in TYPES:
        yield _case(f"good {kind}", good(kind, f"good {kind}", at_ms), None)
    for name in (
        "Dial",
        "DIAL",
        "dial ",
        " dial",
        "dail",
        "call",
        "demo",
        "dm-reached",
        "lead.created",
        "0",
        "д",
    ):
        yield _case(f"type {name}", good("dial", f"type {name}", at_ms) | {"type": name}, "unknown_type")
    yield _case("type empty", good("dial", "type empty", at_ms) | {"type": ""}, "unknown_type")
    yield _case("type long", good("dial", "type long", at_ms) | {"type": "dial" * 5_000}, "unknown_type")
    for name, value in NO_STRINGS.items():
        yield _case(f"type {name}", good("dial", f"type {name}", at_ms) | {"type": value}, "wrong_type")
    for version in (2, 3, 99, 2**31, 2**63, 10**30):
        event = good("dial", f"version {version}", at_ms)
        value = orjson.dumps(event)[:-1] + b',"schema_version":%d}' % version
        yield Case(f"version {version}", value, event["lead_id"].encode(), "unsupported_version")
    for name, value, reason in (
        ("1", 1, None), ("null", None, None), ("zero", 0, "bad_value"), ("minus", -1, "bad_value"),
        ("string", "1", "wrong_type"), ("fraction", 1.5, "wrong_type"), ("true", True, "wrong_type"),
        ("array", [1], "wrong_type"),
    ):  # fmt: skip
        yield _case(
            f"version {name}", good("dial", f"version {name}", at_ms) | {"schema_version": value}, reason
        )


def _fields(at_ms: int) -> Iterator[Case]:
    """Each field of each type: missing, null, empty, of the wrong kind."""
    for kind in TYPES:
        for field in (*IDENTITIES, "occurred_at", "type"):
            event = good(kind, f"{kind} no {field}", at_ms)
            without = {name: value for name, value in event.items() if name != field}
            yield _case(f"{kind} without {field}", without, "missing_field")
            yield _case(f"{kind} null {field}", event | {field: None}, "missing_field")
        name, needed = f"{kind} bare", NEEDED.get(kind, ())
        required = ("event_id", "type", "occurred_at", "lead_id", *needed)
        yield _case(name, {field: good(kind, name, at_ms)[field] for field in required}, None)
        name = f"{kind} nulls"
        optional = {*DIMENSIONS, *MORE.get(kind, ())} - {*needed}
        yield _case(name, good(kind, name, at_ms) | dict.fromkeys(optional), None)
        if needed:
            name = f"{kind} without its own"
            without = good(kind, name, at_ms) | dict.fromkeys(MORE[kind])
            yield _case(name, without, "missing_field")
        name = f"{kind} unknown"
        yield _case(name, good(kind, name, at_ms) | {"phone": "+49", "extra": {"a": [1, None]}}, None)
    for field in (*IDENTITIES, *DIMENSIONS):
        for name, value in NO_STRINGS.items():
            full = f"{field} {name}"
            yield _case(full, good("dial", full, at_ms) | {field: value}, "wrong_type")
    for kind, field in (
        ("lost", "reason"),
        ("disqualified", "reason"),
        ("connect", "answered_by"),
        ("call_ended", "hangup_by"),
    ):
        for name, value in {"integer": 7, "boolean": False, "object": {}}.items():
            full = f"{kind} {field} {name}"
            yield _case(full, good(kind, full, at_ms) | {field: value}, "wrong_type")


def _values(at_ms: int) -> Iterator[Case]:
    """The right kind of JSON, and a rule broken."""
    for field in (*IDENTITIES, *DIMENSIONS):
        for name, character in FORBIDDEN.items():
            full = f"{field} {name}"
            yield _case(full, good("dial", full, at_ms) | {field: f"a{character}b"}, "bad_value")
        full, most = f"{field} too long", 128 if field == "event_id" else 64
        yield _case(full, good("dial", full, at_ms) | {field: "x" * (most + 1)}, "bad_value")
        full = f"{field} empty"
        reason = "bad_value" if field in IDENTITIES else None
        yield _case(full, good("dial", full, at_ms) | {field: ""}, reason)
        escaped = orjson.dumps(good("dial", f"{field} lone", at_ms) | {field: "lone"})
        value = escaped.replace(b'"%s":"lone"' % field.encode(), b'"%s":"\\ud800"' % field.encode())
        yield Case(f"{field} lone surrogate", value, f"lead {field} lone".encode(), "bad_value")
    for field in DIMENSIONS:
        for name, value in {
            "64": "é" * 64,
            "quotes": 'a"b\\c',
            "braces": "{[}]",
            "emoji": "🙂" * 64,
            "rtl": "שלום",
        }.items():
            full = f"{field} {name}"
            yield _case(full, good("dial", full, at_ms) | {field: value}, None)
    choices = (("connect", "answered_by"), ("call_ended", "hangup_by"))
    for kind, field in choices:
        for value in ("nobody", "Human", "CUSTOMER", "customer "):
            full = f"{kind} {field} {value}"
            yield _case(full, good(kind, full, at_ms) | {field: value}, "bad_value")
    for name, value, reason in (
        ("minus", -1, "bad_value"), ("minus-small", -0.001, "bad_value"), ("string", "12", "wrong_type"),
        ("boolean", True, "wrong_type"), ("array", [12], "wrong_type"), ("zero", 0, None),
        ("fraction", 0.125, None),
    ):  # fmt: skip
        full = f"talk_seconds {name}"
        yield _case(full, good("call_ended", full, at_ms) | {"talk_seconds": value}, reason)
    for number, reason in ((b"1e999", "bad_value"), (b"9" * 400, "bad_value")):
        event = good("call_ended", f"talk {number[:4].decode()}", at_ms)
        value = orjson.dumps(event).replace(b"12.5", number)
        yield Case(
            f"talk_seconds {number[:6].decode()}",
            value,
            event["lead_id"].encode(),
            reason,
        )
    for kind, field in (("won", "amount"), ("qualified", "expected_amount")):
        for name, value, reason in (
            ("comma", "1,5", "bad_value"), ("minus", "-1", "bad_value"), ("minus-number", -1, "bad_value"),
            ("decimals", "1.234", "bad_value"), ("letters", "ten", "bad_value"),
            ("spaces", " 1", "bad_value"),
            ("exponent", "1e3", "bad_value"), ("plus", "+1", "bad_value"),
            ("thousands", "1.000,00", "bad_value"),
            ("symbol", "€5", "bad_value"), ("nan", "NaN", "bad_value"), ("boolean", True, "wrong_type"),
            ("array", [1], "wrong_type"), ("object", {"value": 1}, "wrong_type"),
            ("integer", 100, None), ("number", 99.5, None), ("string", "99.5", None), ("zero", "0", None),
        ):  # fmt: skip
            full = f"{kind} {field} {name}"
            yield _case(full, good(kind, full, at_ms) | {field: value}, reason)
        for value in ("eur", "EURO", "€", "XXX1", "E", "978"):
            full = f"{kind} currency {value}"
            yield _case(full, good(kind, full, at_ms) | {"currency": value}, "bad_value")
        for name, value in {"integer": 978, "boolean": True, "array": ["EUR"]}.items():
            full = f"{kind} currency {name}"
            yield _case(full, good(kind, full, at_ms) | {"currency": value}, "wrong_type")
        for field_ in (field, "currency"):
            full = f"{kind} lacks {field_}"
            yield _case(full, good(kind, full, at_ms) | {field_: None}, "missing_field")
        full = f"{kind} no money"
        yield _case(full, good(kind, full, at_ms) | {field: None, "currency": None}, None)


def _times(at_ms: int) -> Iterator[Case]:
    """`occurred_at`, in itself and against the record's own time."""
    for name, value, reason in (
        ("not-a-date", "yesterday", "bad_value"), ("empty", "", "bad_value"),
        ("day-first", "01.03.2025", "bad_value"),
        ("no-offset", "2025-03-01T09:30:00", "bad_value"), ("date-alone", "2025-03-01", "bad_value"),
        ("month-13", "2025-13-01T00:00:00Z", "bad_value"), ("day-30", "2025-02-30T00:00:00Z", "bad_value"),
        ("hour-25", "2025-03-01T25:00:00Z", "bad_value"), ("digits", "1740830400000", "bad_value"),
        ("fraction", 1740830400000.5, "wrong_type"), ("boolean", True, "wrong_type"),
        ("array", [2025], "wrong_type"),
        ("object", {"s": 1}, "wrong_type"), ("minus", -1, "bad_value"),
        ("nanoseconds", at_ms * 1_000_000, "bad_value"),
        ("microseconds", at_ms * 1000, "bad_value"), ("year-9999", "9999-12-31T23:59:59Z", "bad_value"),
        ("year-1969", "1969-12-31T23:59:59Z", "bad_value"), ("last-64-bits", 2**64 - 1, "bad_value"),
        ("seconds", at_ms // 1000, "bad_value"), ("zero", 0, "bad_value"),
        ("last-of-the-seconds", 99_999_999_999, "bad_value"), ("first-of-the-ms", 100_000_000_000, "too_old"),
        ("year-1970", "1970-01-01T00:00:00Z", "too_old"),
        ("401-days", at_ms - 401 * 86_400_000, "too_old"),
        ("400-days", at_ms - 400 * 86_400_000 + 60_000, None),
        ("6-minutes-ahead", at_ms + 360_000, "from_the_future"),
        ("a-day-ahead", at_ms + 86_400_000, "from_the_future"),
        ("year-2100", "2100-12-31T23:59:59Z", "from_the_future"), ("4-minutes-ahead", at_ms + 240_000, None),
    ):  # fmt: skip
        full = f"occurred_at {name}"
        yield _case(full, good("dial", full, at_ms) | {"occurred_at": value}, reason)


def _keys(at_ms: int) -> Iterator[Case]:
    value = orjson.dumps(good("dial", "key", at_ms))
    for name, key in {
        "other": b"somebody else", "empty": b"", "quoted": b'"lead key"', "upper": b"LEAD KEY",
        "not-utf8": b"\xff\xfe",
        "space": b"lead key ", "nul": b"lead key\x00", "utf-16": "lead key".encode("utf-16-le"),
        "registry": b"\x00\x00\x00\x00\x01lead key",
    }.items():  # fmt: skip
        yield Case(f"key {name}", value, key, "key_mismatch")
    yield Case("no key", orjson.dumps(good("dial", "no key", at_ms)), None, None)
    event = good("dial", "ключ", at_ms)
    yield Case("key in UTF-8", orjson.dumps(event), event["lead_id"].encode(), None)


class Packed(NamedTuple):
    """A record batch as a sender with odd tools writes it."""

    name: str
    batch: bytes
    reasons: tuple[str | None, ...]
    """What must become of each record. Of a batch that nobody can read: the one reason, for all of them."""
    records: int


CODECS = ("gzip", "xerial", "lz4", "zstd")
BOMB_BYTES = 450 << 20
"""Of zeros: what some kilobytes unpack to."""


def batches(
    at_ms: int,
    lead_at_home: str,
    lead_away: str,
    codecs: Iterable[str] = CODECS,
    bomb_bytes: int = BOMB_BYTES,
) -> Iterator[Packed]:
    """Large keys, values and headers, bombs, and names that are no text, amid good events.

    Events of `lead_at_home` belong where these batches are published, those of `lead_away` elsewhere.
    """
    zeros, home = b"\0" * 9_000_000, lead_at_home.encode()

    def event(name: str, lead: str = lead_at_home) -> bytes:
        return orjson.dumps(good("dial", name, at_ms) | {"lead_id": lead})

    def batch(
        name: str, codec: str, *odd: tuple[str | None, bytes], lumped: bool = False, **how: Any
    ) -> Packed:
        """The odd records, a good one before and one behind them."""
        name = f"{name} {codec}"
        first, last = record(0, home, event(f"{name} a")), record(len(odd) + 1, home, event(f"{name} z"))
        number, pack = PACK[codec]
        count = len(odd) + 2
        packed = pack(b"".join((first, *(each for _, each in odd), last)), **how)
        reasons = ("too_large",) if lumped else (None, *(reason for reason, _ in odd), None)
        return Packed(name, assembled(packed, count, codec=number, at_ms=at_ms), reasons, count)

    for codec in codecs:
        yield batch("a value of a bomb", codec, ("too_large", record(1, home, bytes(bomb_bytes))))
        yield batch("a key of 9 MB", codec, ("key_mismatch", record(1, zeros, event(f"key {codec}"))))
        yield batch(
            "a header of 9 MB",
            codec,
            (None, record(1, home, event(f"header {codec}"), [(b"large", zeros)])),
            ("not_json", record(2, home, b"{", [(b"trace", b"t"), (b"large", zeros)])),
        )
        yield batch(
            "a header that is no text",
            codec,
            (None, record(1, home, event(f"name {codec}"), [(b"\xff", b"x")])),
            ("not_json", record(2, home, b"{", [(b"\xff", b"x")])),
        )
        headers = [(b"trace", b"t"), (b"large", zeros[:2_000_000])]
        away = record(1, lead_away.encode(), event(f"away {codec}", lead_away), headers)
        yield batch("away from home with 2 MB of headers", codec, (None, away))
    for codec in sorted({"lz4", "zstd"}.intersection(codecs)):
        many = (record(n, home, zeros[:65_000]) for n in range(1, bomb_bytes // 65_000))
        yield batch("thousands of values", codec, *(("not_json", each) for each in many))
        empty = record(1, home, event(f"many {codec}"), [(b"", None)] * 2_000_000)
        yield batch("two million headers", codec, (None, empty))


def whole_blocks(at_ms: int, lead: str) -> Iterator[Packed]:
    """What can only be unpacked whole, and is too large for it: one dead letter for three records."""
    home = lead.encode()
    for name, codec, size, how in (
        ("a block", "snappy", 40 << 20, {}),
        ("a window", "zstd", BOMB_BYTES, {"window_log": 27}),
    ):
        made = [record(n, home, bytes(size if n == 1 else 10)) for n in range(3)]
        number, pack = PACK[codec]
        packed = assembled(pack(b"".join(made), **how), 3, codec=number, at_ms=at_ms)
        yield Packed(f"{name} {codec}", packed, ("too_large",), 3)


def mutations(seed: int, n: int, at_ms: int) -> Iterator[tuple[bytes, bytes]]:
    """Values of good events with a few of their bytes changed, and their keys."""
    chance = random.Random(f"mutations {seed}")
    kinds = list(TYPES)
    pieces = (
        b"",
        b"\xff",
        b"\\u",
        b"\\ud800",
        b'"',
        b"{",
        b"[",
        b"}",
        b",",
        b"null",
        b"1e999",
        b"-",
        b"\x00",
        b"\x7f",
        b":",
    )
    for number in range(n):
        event = good(chance.choice(kinds), f"mutation {number}", at_ms)
        text = bytearray(orjson.dumps(event))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(text) + 1)
            way = chance.random()
            if way < 0.4:
                text[at : at + chance.randint(0, 4)] = chance.choice(pieces)
            elif way < 0.7 and at < len(text):
                text[at] ^= 1 << chance.randrange(8)
            elif way < 0.85:
                text[at:] = b""
            else:
                other = chance.randrange(len(text) + 1)
                text[at:at] = text[other : other + chance.randint(1, 40)]
        yield bytes(text), event["lead_id"].encode()

"""Ordinary records are read by the core (`streams/core/`): what comes of them is what the codec says.

Each record goes through both kinds of tables, and everything that it causes is compared.
"""

import json
from datetime import datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.events import TYPES
from callfunnel.streams.by_definition import DefinedTables
from callfunnel.streams.engine import Partition
from callfunnel.streams.rows import decode_columns
from contract.records import mutated
from faults import corpus
from property.test_fold import FOLD

NOON_MS = 1_740_830_400_000
LEAD = "lead"


pytestmark = pytest.mark.parametrize("tables", ["core"], indirect=True)


class Asked(Decoder):
    """Knows which records it was asked about."""

    def decode_all(self, values, keys, timestamps):
        self.values = list(values)
        return super().decode_all(values, keys, timestamps)


def of_tables(tables, decoder, values, keys, timestamps):
    """What a batch of records causes, and the decoder was asked."""
    state = Partition(0, 1, FOLD, decoder, tables)
    effects = state.apply(list(values), list(keys), list(timestamps), len(values))
    rows = {key: row and decode_columns(row) for key, row in effects.funnel[:-1]}
    return replace(effects, funnel=[]), rows, decoder.values


def asked_about(tables, values, keys=None, timestamps=None, **limits):
    """The records that are left to the codec, after comparing what all of them cause."""
    keys = keys or [None] * len(values)
    timestamps = timestamps or [NOON_MS] * len(values)
    (expected, expected_rows, everything), (effects, rows, odd) = (
        of_tables(kind, Asked(Limits(**limits)), values, keys, timestamps) for kind in (DefinedTables, tables)
    )
    assert everything == list(values)
    assert effects == expected
    assert rows == expected_rows
    return odd


def text(kind, **fields):
    event = {"event_id": "e", "lead_id": LEAD, "occurred_at": NOON_MS, "type": kind}
    return json.dumps(event | fields, ensure_ascii=False).encode()


def spelled(kind, field, value):
    """A record with the bytes of a value."""
    return text(kind, **{field: "HERE"}).replace(b'"HERE"', value)


def strings(*values):
    return [json.dumps(value, ensure_ascii=False).encode() for value in values]


ORDINARY_TIME = "2025-03-01T09:30:00"
ENDS = """
    Z z ZZ . .Z ,5Z .9Z .98Z .987Z .9876Z .98765Z .987654Z .9876543Z .98765432Z .987654321Z .9+01:00
    +00:00 -00:00 +05:30 -05:30 +23:59 -23:59 +24:00 -24:00 +05:60 +0530 +05
"""
TIMES = """
    2025-03-01t09:30:00Z 2025-03-01T09:30Z 2025-3-01T09:30:00Z -025-03-01T09:30:00Z 20250301 1740830400000 now
    2025-03-01T24:00:00Z 2025-03-01T23:60:00Z 2025-03-01T23:59:60Z 1972-02-29T00:00:00Z 2000-02-29T00:00:00Z
    2023-02-29T00:00:00Z 2024-02-29T00:00:00Z 2100-02-29T00:00:00Z 0000-01-01T00:00:00Z 1970-01-01T00:00:00Z
    1970-01-01T00:29:00+00:30 1970-01-01T00:00:00-00:30 1969-12-31T23:59:59Z 2100-12-31T23:59:59.999999Z
    2101-01-01T00:00:00Z 2100-12-31T23:59:59-00:01
"""
DAYS = ("00", "01", "28", "30", "31", "32")
NUMBERS = b"""
    0 1 2 -0 -1 +1 00 01 1. .5 1.0 1.5 0.1 14.999 15.0000 1e3 1E-3 1e400 NaN Infinity
    99999999999 100000000000
    1740830400000 1740830400000.0 4133980799999 4133980800000 999999999999999 9999999999999999
    123456789012.345 99999999999.99999 99999999999.9999 0.00000000000001 0.0000000000000001
"""
WORDS = "human machine agent customer system EUR x / {[ a'b"
CHARACTERS = [
    *"\x7f\x80\x9f\u00a0\u061c\u200d\u200e\u200f\u2010\u2027\u2028\u202e\u202f\u2065\u2066\u2069\u206a",
    *"\ufeff\ufffe\U0010ffff",
]
NOT_UTF8 = """
    ff ff.bf 80 85.a0 bf.bf c0.80 c1.bf c3 c3.28 e0.80.80 e0.a0 ed.a0.80 ed.bf.bf f0.80.80.80 f0.9f.98
    f4.90.80.80 f5.80.80.80 f8.88.80.80.80 f9.80.80.80 fc.bf.bf.bf fd.bf
"""
SPELLINGS = [
    *strings(*(ORDINARY_TIME + end for end in ["", " Z", "Z ", *ENDS.split()]), *TIMES.split()),
    *strings(*(f"2025-{month:02}-{day}T00:00:00Z" for month in range(14) for day in DAYS)),
    *(*NUMBERS.split(), b"9" * 400),
    *strings("", " ", "a\tb", 'a"b', "a\\b", *WORDS.split(), *CHARACTERS),
    *strings(*(character * n for character in ("x", "ü", "€", "\U0001f600") for n in (64, 65))),
    *(b'"%s"' % bytes.fromhex(odd.replace(".", "")) for odd in NOT_UTF8.split()),
    *(b'"a\tb"', b'"a\nb"', b'"\\u0061"', b'"a', b'a"', b'"\\"', b"''", b"", b"null null", b'{"a":1}'),
    *b"null true false nul nullx {} [] [1]".split(),
]
REPEATED = (b"type", b"lead_id", b"campaign", b"other")
FIELDS = sorted({field for cls in TYPES.values() for field in cls.__struct_fields__} | {"type", "Type", "ü"})


@pytest.mark.parametrize("kind", TYPES)
def test_every_field_with_every_value(tables, kind):
    for field in FIELDS:
        for spelling in SPELLINGS:
            asked_about(tables, [spelled(kind, field, spelling)], [LEAD.encode()], clock="event")


@pytest.mark.parametrize("kind", TYPES)
def test_every_form_of_an_object(tables, kind):
    good = text(kind, campaign="c", call_id="x")
    inside, again = good[1:-1], [b'"won"', b'"other"', b"null", b'""', b"7"]
    odd = [
        *(None, b"", b" ", b"{", b"}", b"{}", b"[]", b"null", b'"x"', b"7", b"[%s]" % good, good + good),
        *(before + good for before in (b" \t\r\n", b"\0", b"\xef\xbb\xbf", b"\x0b", b"x")),
        *(good + after for after in (b" \t\r\n", b"\0", b"}", b"x")),
        *(good[:-1], good[1:], b"{%s,}" % inside, b"{,%s}" % inside, b'{%s, "": 1}' % inside),
        *(good.replace(b", ", comma) for comma in (b" \n,\t ", b"\x0b,", b",,", b" ")),
        *(good.replace(b": ", colon) for colon in (b"\r:\n", b"::", b" ")),
        *(good.replace(b'"type"', name) for name in (b'"\\u0074ype"', b'"Type"', b'"%s"' % (b"c" * 300))),
        *(b'{%s, "%s": %s}' % (inside, field, last) for field in REPEATED for last in again),
        *(b'{"%s": %s, %s}' % (field, first, inside) for field in REPEATED for first in again),
    ]
    for value in odd:
        asked_about(tables, [value])


NEEDY = {"retracted", "touch", "revenue_adjusted"}
"""Types with fields that have to be there."""


def test_what_is_ordinary_is_not_left_to_the_codec(tables):
    ordinary = [
        *(
            text(kind, campaign="ü" * 64, agent="a b", source=None, call_id="")
            for kind in TYPES.keys() - NEEDY
        ),
        *(
            text("connect", answered_by=who, direction=way)
            for who in ("human", "unknown")
            for way in ("inbound", "outbound")
        ),
        text("lead_created", imported=False),
        text("lead_created", imported=True),
        text("won", sale_kind="upsell", product="ü" * 64, segment="a"),
        text("appointment_held", outcome="held"),
        text("retracted", retracts="ü" * 128),
        text("retracted", retracts="x", retracts_type="revenue_adjusted"),
        text("retracted", retracts_type="won", retracts=""),
        text("touch", channel="visit", automated=True),
        spelled("dial", "occurred_at", b'"2025-03-01T09:30:00.123456+05:30"'),
        text("connect", answered_by="machine"),
        text("call_ended", talk_seconds=14.9, hangup_by="agent"),
        text("lost", reason="price"),
        text("dial", disposition="busy", attempts=3, score=0.25, transfer=False, schema_version=1),
    ]
    keys = [LEAD.encode()] * len(ordinary)
    assert asked_about(tables, ordinary) == asked_about(tables, ordinary, keys) == []
    assert asked_about(tables, ordinary, [b"other"] * len(ordinary)) == ordinary
    assert asked_about(tables, ordinary, max_bytes=10) == ordinary


def test_a_time_is_judged_by_the_record_s_own(tables):
    day_ms = 86_400_000
    around = (-day_ms - 1, -day_ms, 0, 300_000, 300_001)
    times = [0, 1, *(NOON_MS + ms for ms in around), 2**42]
    values = [text("dial", event_id=f"e{n}", occurred_at=ms) for n, ms in enumerate(times)]
    replays = (
        {"clock": "event", "until_ms": until_ms} for until_ms in (None, NOON_MS, NOON_MS - 1, -1, 2**62)
    )
    for limits in ({"clock": "wall", "retention_ms": day_ms}, *replays):
        for timestamp_ms in (-1, 0, NOON_MS, 2**62):
            asked_about(tables, values, timestamps=[timestamp_ms] * len(values), **limits)
        mixed = [(-1, NOON_MS, NOON_MS + day_ms)[n % 3] for n in range(len(values))]
        asked_about(tables, values, timestamps=mixed, **limits)


@settings(max_examples=500)
@given(
    time=st.datetimes(
        datetime(1969, 12, 30),
        datetime(2101, 1, 2),
        timezones=st.integers(-1_439, 1_439).map(lambda minutes: timezone(timedelta(minutes=minutes))),
    ),
    talk_seconds=st.floats(0, 1e6) | st.decimals(0, 10_000, places=3).map(float),
)
def test_any_time_and_any_number(tables, time, talk_seconds):
    ended = text("call_ended", occurred_at=time.isoformat(), talk_seconds=talk_seconds, call_id="x")
    asked_about(tables, [ended], clock="event")


@settings(max_examples=1_000)
@given(values=st.lists(mutated(), min_size=1, max_size=3))
def test_whatever_becomes_of_an_event(tables, values):
    asked_about(tables, values, clock="event")


def test_many_mutations(tables):
    records = list(corpus.mutations(7, 20_000, NOON_MS))
    for start in range(0, len(records), 100):
        values, keys = zip(*records[start : start + 100], strict=True)
        asked_about(tables, values, keys)


def test_the_corpus_of_bad_records(tables):
    cases = corpus.cases(NOON_MS)
    asked_about(tables, [case.value for case in cases], [case.key for case in cases])

"""What `callfunnel validate` finds in a file, as the tables would, in bounded memory."""

import io
import json
import tracemalloc

import pytest

from callfunnel.agents.publish.validation import Crowd, Line, Validation, batches, records
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.events import TYPES, Dial
from callfunnel.streams.engine import Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.panes import resolutions

AT = 1_740_830_400_000
EVENT = {"event_id": "e", "type": "dial", "occurred_at": AT, "lead_id": "l"}
HISTORY = Limits(clock="event")


def lines_of(data: bytes, most_bytes: int = 100) -> list[Line]:
    return list(records(io.BytesIO(data), most_bytes))


def validated(*events, **options) -> Validation:
    validation = Validation(HISTORY, **options)
    lines = [
        Line(n, text, len(text)) for n, text in enumerate((json.dumps(one).encode() for one in events), 1)
    ]
    validation.refusals = list(validation.judge(lines, AT))
    return validation


# Lines


def test_blank_lines_are_no_records_and_ends_of_lines_no_part_of_them():
    assert lines_of(b"a\n\n \t\nb\r\nc") == [Line(1, b"a", 1), Line(4, b"b", 1), Line(5, b"c", 1)]


def test_a_file_that_begins_with_a_lone_bracket_is_one_record():
    assert lines_of(b"{\n1\n}\n") == [Line(1, b"{\n1\n}", 5)]
    assert lines_of(b"{}\n{}\n") == [Line(1, b"{}", 2), Line(2, b"{}", 2)]


@pytest.mark.parametrize("size", [100, 101, 102, 103, 70_000, 200_000])
def test_of_a_line_that_is_too_long_its_size_is_known_and_its_beginning_kept(size):
    (first, second) = lines_of(b"x" * size + b"\r\nnext\n")
    assert (first.number, first.size, second) == (1, size, Line(2, b"next", 4))
    assert len(first.value) <= 102 + 65_536
    (whole,) = lines_of(b"{\n" + b"x" * size)
    assert whole.size == size + 2


def test_a_line_without_an_end_does_not_take_its_size_in_memory():
    class Endless(io.RawIOBase):
        left = 200 * 2**20

        def readinto(self, buffer):
            given = min(len(buffer), self.left)
            self.left -= given
            buffer[:given] = b"x" * given
            return given

        def readable(self):
            return True

    tracemalloc.start()
    (line,) = records(io.BufferedReader(Endless()), 65_536)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert line.size == 200 * 2**20
    assert peak < 2**20


def test_large_lines_are_judged_a_few_at_a_time():
    lines = [Line(n, b"x" * 1_000_000, 1_000_000) for n in range(20)]
    assert [len(batch) for batch in batches(lines)] == [5, 5, 5, 5]
    assert [len(batch) for batch in batches([Line(n, b"x", 1) for n in range(4_001)])] == [2_000, 2_000, 1]


# Crowded leads


def dial(lead, number):
    return Dial(event_id=f"e{number}", lead_id=lead, occurred_at=AT)


def test_a_lead_is_crowded_exactly_where_the_tables_find_it():
    events = [EVENT | {"event_id": f"e{n % 7}", "lead_id": f"l{n % 2}"} for n in range(40)]
    fold = Fold(15_000, 600_000, 3, "UTC", "trust", resolutions())
    partition = Partition(0, 1, fold, Decoder(HISTORY))
    values = [json.dumps(event).encode() for event in events]
    effects = partition.apply(values, [None] * 40, [AT] * 40, 40)
    validation = validated(*events, crowd=Crowd(most_events=3))
    assert [line - 1 for line, _ in validation.refusals] == [i for i, _ in effects.rejected]
    assert len(effects.rejected) > 10


def test_where_memory_is_short_the_smallest_leads_are_forgotten_and_that_is_told():
    crowd = Crowd(most_events=50, most_held=5_000)
    taken = 0
    for n in range(3_000):
        assert crowd.take(dial(f"small {n}", 0)) == "new"
        taken += crowd.take(dial("0", n)) == "new"
    assert crowd.forgot
    assert taken == 50
    assert crowd._held <= 5_000


def test_as_long_as_all_leads_are_held_nothing_is_forgotten():
    crowd = Crowd(most_held=5_000)
    assert {crowd.take(dial(f"l{n}", 0)) for n in range(200)} == {"new"}
    assert not crowd.forgot


# Copies


def test_copies_and_contradictions_are_told_apart_as_the_tables_do():
    one = EVENT | {"event_id": "a"}
    events = [
        *(one, one, one | {"agent": "b"}, one | {"agent": "b"}, one | {"agent": "c"}),
        *(one | {"lead_id": "other"}, one | {"type": "won"}, one | {"type": "won", "reason": "ignored"}),
    ]
    validation = validated(*events)
    assert (validation.copies, validation.conflicting, validation.first_conflicting_line) == (3, 2, 3)
    partition = Partition(0, 1, Fold(15_000, 600_000, 9, "UTC", "trust", resolutions()), Decoder(HISTORY))
    effects = partition.apply([json.dumps(event).encode() for event in events], [None] * 8, [AT] * 8, 8)
    assert (effects.duplicates, effects.conflicting) == (3, 2)


# Misspelt fields


@pytest.mark.parametrize(
    ("field", "meant"),
    [
        ("campain", "campaign"),
        ("campaignId", "campaign"),
        ("occured_at", "occurred_at"),
        ("occurredAt", "occurred_at"),
        ("leadId", "lead_id"),
        ("lead", "lead_id"),
        ("Event-ID", "event_id"),
        ("souce", "source"),
        ("schemaVersion", "schema_version"),
        ("talkSeconds", "talk_seconds"),
        ("ammount", "amount"),
    ],
)
def test_a_field_that_looks_like_a_known_one_is_misspelt(field, meant):
    kind = {"talk_seconds": "call_ended", "amount": "won"}.get(meant, "dial")
    event = {name: value for name, value in EVENT.items() if name != meant}
    (found,) = validated(event | {"type": kind, field: "x"}, event | {"type": kind, field: "x"}).misspelt
    assert (found.field, found.meant, found.lines) == (field, meant, 2)


@pytest.mark.parametrize(
    "field",
    [
        "note",
        "phone",
        "disposition",
        "attempts",
        "score",
        "kind",
        "time",
        "amount",
        "reason",
        "x" * 65,
        "\u202e",
        "",
    ],
)
def test_other_fields_are_the_senders_own_affair(field):
    assert validated(EVENT | {field: "x"}).misspelt == []


def test_who_has_the_known_field_too_has_misspelt_nothing():
    assert validated(EVENT | {"agent": "a-1", "agent_id": "a-1"}).misspelt == []


@pytest.mark.parametrize("value", [b"[]", b"7", b"{", b"\xff", b'{"x":' + b"[" * 60_000, b'{"\\ud800":1}'])
def test_what_is_no_object_has_no_fields(value):
    validation = Validation(HISTORY)
    assert len(list(validation.judge([Line(1, value, len(value))], AT))) == 1
    assert validation.misspelt == []


def test_a_file_of_random_names_does_not_fill_the_memory():
    validation = validated(*(EVENT | {f"campaign{n}": "x"} for n in range(1_500)))
    assert len(validation.misspelt) == 1_000


# The span


def test_the_span_is_that_of_the_accepted_events():
    events = [EVENT | {"occurred_at": AT + n, "event_id": f"e{n}"} for n in (5, -3, 2)]
    validation = validated(*events, EVENT | {"occurred_at": 0})
    assert (validation.first_ms, validation.last_ms) == (AT - 3, AT + 5)
    assert (validated().first_ms, validated().last_ms) == (None, None)


def test_every_type_is_looked_at():
    for kind in TYPES:
        assert validated(EVENT | {"type": kind, "callId": "c"}).misspelt[0].meant == "call_id"

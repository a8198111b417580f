"""What a lead's record holds: each event once, in few bytes, and nothing that depends on arrival."""

from itertools import permutations
from typing import get_args

import pytest
from xxhash import xxh3_64_intdigest

from callfunnel.schemas.events import (
    TYPES,
    AppointmentHeld,
    AppointmentSet,
    CallEnded,
    Connect,
    DemoHeld,
    Dial,
    Disqualified,
    DmReached,
    LeadCreated,
    LeadRecycled,
    Lost,
    ProposalSent,
    Qualified,
    Retractable,
    Retracted,
    RevenueAdjusted,
    Touch,
    Won,
)
from callfunnel.streams.log import (
    KINDS,
    OWN,
    RETRACTABLE,
    entry_of,
    fingerprint,
    identity,
    in_force,
    joined,
    pack,
    unpack,
)

T = 1_750_000_020_000


def event(cls, after_ms=0, event_id="e", **fields):
    return cls(event_id=event_id, occurred_at=T + after_ms, lead_id="l", **fields)


def log_of(*events):
    return joined((), set(map(entry_of, events)))


EVERYTHING = (
    event(LeadCreated, campaign="spring", source="web", location="Köln"),
    event(Dial, 1_000, "d", call_id="c", team="north", agent="ann"),
    event(Connect, 2_000, "k", call_id="c", answered_by="machine"),
    event(Connect, 2_000, "k", call_id="c", answered_by="human"),
    event(Connect, 2_000, "k", call_id="c"),
    event(DmReached, 3_000, "r", call_id="c", team="north", agent="ann", location="Köln"),
    event(CallEnded, 4_000, "x", call_id="c", talk_seconds=1.5, hangup_by="system"),
    event(Qualified, 5_000, "q", expected_amount="19.90", currency="EUR"),
    event(Won, 6_000, "w", amount=5, currency="JPY"),
    event(Disqualified, 7_000, "s", reason="price"),
    event(Lost, 8_000, "l", reason="price", call_id="c2"),
    event(Lost, 8_000, "l"),
    event(LeadCreated, 0, "i", imported=True),
    event(Connect, 2_000, "k", call_id="c", direction="inbound"),
    event(Won, 6_000, "w2", sale_kind="cross_sell", product="line", segment="dentists"),
    event(LeadRecycled, 9_000, "y"),
    event(Retracted, 9_001, "b", retracts="w"),
    event(Retracted, 9_002, "b2", retracts="w2", retracts_type="won"),
    event(Retracted, 9_003, "b3", retracts_type="revenue_adjusted"),
    event(AppointmentSet, 9_004, "p"),
    event(AppointmentHeld, 9_005, "p", outcome="cancelled"),
    event(DemoHeld, 9_006, "p"),
    event(ProposalSent, 9_007, "p", amount="0.01", currency="EUR"),
    event(Touch, 9_008, "t", channel="visit"),
    event(Touch, 9_009, "t", channel="email", automated=True),
    event(RevenueAdjusted, 9_010, "n", amount="-5", currency="JPY", adjusts="w"),
)


def test_a_packed_log_unpacks_to_the_same():
    log = log_of(*EVERYTHING)
    assert unpack(pack(log)) == log


def test_what_an_entry_holds():
    ended = entry_of(event(CallEnded, 7, "x", call_id="c", agent="ann", talk_seconds=1.5, hangup_by="agent"))
    assert ended == (
        *(T + 7, 6, xxh3_64_intdigest(b"x"), xxh3_64_intdigest(b"c")),
        *(None, None, None, None, "ann"),
        (1_500, 1),
    )
    assert entry_of(event(Won, amount="19.9", currency="EUR")).own == (1_990, "EUR", None, None, None)
    back = entry_of(event(Retracted, retracts="x", retracts_type="touch"))
    assert back.own == (xxh3_64_intdigest(b"x"), 14)


def test_what_means_the_same_as_a_missing_field_is_missing():
    said = event(Connect, answered_by="unknown", direction="outbound")
    assert entry_of(said) == entry_of(event(Connect))
    assert entry_of(event(LeadCreated, imported=False)) == entry_of(event(LeadCreated))
    assert entry_of(event(AppointmentHeld, outcome="held")) == entry_of(event(AppointmentHeld))


def test_a_talk_is_in_whole_milliseconds_rounded_down_and_cut_where_nobody_talks_so_long():
    for seconds, ms in ((0.0, 0), (14.9999, 14_999), (15.0, 15_000), (1e300, 2**53 - 1)):
        assert entry_of(event(CallEnded, talk_seconds=seconds)).own[0] == ms


def test_these_are_the_bytes():
    """By hand, from the format in streams/README.md."""
    mark, call, won = (xxh3_64_intdigest(text).to_bytes(8, "little") for text in (b"e", b"c", b"w"))
    record = pack(
        log_of(
            event(Dial, campaign="spring", agent="ann", call_id="c"),
            event(Won, 300, "w", campaign="spring", call_id="c", amount=2, currency="EUR"),
        )
    )
    assert record == (
        b"\x01"
        + b"\xc1\xa0\xd4\x84\xa1\xf7\x32" + mark + b"\x11\x01\x06spring\x02\x03ann" + b"\x00" + call
        + b"\xe5\xac\x02" + won + b"\x10\x00" + b"\x00" + b"\x03\x90\x03\x03\x03EUR"
    )  # fmt: skip


def test_equal_sets_have_equal_bytes_whatever_came_first():
    some = EVERYTHING[:5]
    assert len({pack(log_of(*order)) for order in permutations(some)}) == 1


def test_entries_are_in_the_order_of_time_type_and_mark():
    marks = sorted("abc", key=fingerprint)
    log = log_of(event(Dial, 1, "a"), event(Connect, 0, "a"), *(event(Dial, 0, name) for name in "cba"))
    assert [(entry.at_ms - T, entry.rank) for entry in log] == [(0, 1), (0, 1), (0, 1), (0, 2), (1, 1)]
    assert [entry.mark for entry in log[:3]] == [fingerprint(name) for name in marks]


def test_copies_that_contradict_are_ordered_by_their_fields_what_is_missing_first():
    copies = (
        event(Dial),
        event(Dial, agent="ann"),
        event(Dial, agent="bo"),
        event(Dial, campaign="a"),
        event(Dial, call_id="c"),
        event(Dial, 1),
    )
    assert log_of(*reversed(copies)) == [entry_of(one) for one in copies]
    assert in_force(log_of(*copies)) == [entry_of(copies[0])]


def test_an_event_is_known_by_its_id_its_type_and_who_answered():
    kinds = (Dial, Connect, DmReached)
    assert len({identity(entry_of(event(kind))) for kind in kinds}) == 3
    by = (None, "human", "machine")
    assert len({identity(entry_of(event(Connect, answered_by=one))) for one in by}) == 3
    assert identity(entry_of(event(Dial, 5, agent="a"))) == identity(entry_of(event(Dial, 6, agent="b")))


def test_a_fingerprint_depends_on_the_whole_id():
    assert len({fingerprint(f"event-{n}") for n in range(10_000)}) == 10_000


def test_a_record_cut_anywhere_or_grown_is_none():
    record = pack(log_of(*EVERYTHING))
    ends = {1}
    for size in range(1, len(EVERYTHING) + 1):
        ends.add(len(pack(log_of(*EVERYTHING)[:size])))
    for size in set(range(len(record))) - ends | {1}:
        with pytest.raises(ValueError, match="not a lead's record"):
            unpack(record[:size])


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\x02",
        b"\x01\x1f\x00" + bytes(8),  # a type beyond the catalogue
        b"\x01\x01" + b"\xff" * 10 + bytes(8),  # a time that is too large
        b"\x01\x81\x00" + bytes(8) + b"\x01\x02",  # a text that is not there
        b"\x01\x81\x00" + bytes(8) + b"\x20\x01",  # a sixth dimension
        b"\x01\x81\x00" + bytes(8) + b"\x01\x01\x01\xff",  # no UTF-8
        b"\x01\x41\x00" + bytes(8) + b"\x01",  # a call that is not there
        b"\x01\x21\x00" + bytes(8) + b"\x01\x00",  # an own field of a type that has none
    ],
)
def test_what_is_no_record_is_refused(record):
    with pytest.raises(ValueError, match=r"\w"):
        unpack(record)


def test_every_type_fits_into_a_record():
    assert len(TYPES) <= 32
    assert [kind.rank for kind in KINDS] == list(range(len(KINDS)))
    assert all(len(fields) <= 8 for fields in OWN.values())
    for kind, fields in OWN.items():
        assert {field.given_as for field in fields} == {*kind.__struct_fields__} - {*Dial.__struct_fields__}


def test_a_retraction_may_name_every_type_but_its_own():
    assert (
        get_args(get_args(Retractable)[0])
        == RETRACTABLE
        == tuple(name for name in TYPES if name != "retracted")
    )

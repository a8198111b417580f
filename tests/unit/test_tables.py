"""The two kinds of tables beside each other, where a byte counts: long, odd and many."""

import random
import sys
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from held import store
from msgspec.json import encode
from msgspec.structs import replace

from callfunnel import streams
from callfunnel.agents import choice
from callfunnel.agents.choice import NotBuilt, tables_for
from callfunnel.agents.config import Settings
from callfunnel.agents.engine.worker import fold_of, tables_of
from callfunnel.agents.errors import SettingError
from callfunnel.agents.kafka.topics import wanted
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.schemas.events import (
    CallEnded,
    Connect,
    Dial,
    Disqualified,
    DmReached,
    LeadCreated,
    Lost,
    Won,
)
from callfunnel.schemas.topics import leads_changelog
from callfunnel.streams import oracle
from callfunnel.streams.by_definition import DefinedTables
from callfunnel.streams.engine import Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.log import unpack
from callfunnel.streams.panes import resolutions
from callfunnel.streams.rows import encode_key

T = 1_750_000_020_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
FOLD = Fold(
    hangup_ms=15_000,
    late_ms=600_000,
    lead_events=70_000,
    timezone="Asia/Kolkata",
    partitioner="trust",
    resolutions=resolutions(),
)
ODD = ('"', "\\", 'a"b\\c', "ü" * 64, "\U0001f600" * 64, "x" * 31, "x" * 32, "/", "</script>", " ")


def event(cls, number, **fields):
    return cls(event_id=f"e{number}", occurred_at=fields.pop("at", T + number), **fields)


def of_odd_texts():
    for number, text in enumerate(ODD):
        own = {"lead_id": text, "campaign": text, "source": text, "location": text}
        yield event(LeadCreated, number, **own)
        yield Dial(event_id=text, lead_id=text, occurred_at=T, agent=text, team=text, call_id=text)
        yield event(DmReached, 100 + number, **own, agent=text, team=text, call_id=text)
        yield event(Won, 200 + number, lead_id=text, agent=text)


def of_many_calls(calls):
    for number in range(calls):
        own = {"lead_id": "l", "call_id": f"c{number}", "at": T + number * 60_000}
        yield event(Connect, number, **own, answered_by="machine" if number % 3 else "human")
        yield event(DmReached, calls + number, **own, agent=f"a{number % 7}")
        talk_seconds = (None, 0.0, 0.5, 14.999, 15.0, 1e300)[number % 6]
        by = (None, "agent", "customer", "system")[number % 4]
        yield event(CallEnded, 2 * calls + number, **own, talk_seconds=talk_seconds, hangup_by=by)


def of_many_agents(calls):
    """Two leads that everybody calls, told in disorder, some twice, some otherwise than before."""
    told = []
    for number in range(calls):
        own = {"lead_id": "lm"[number % 3 == 0], "agent": f"agent-{number}", "team": f"team-{number // 12}"}
        of_call = own | {"call_id": f"c{number}", "at": T + number * 10}
        told += [
            event(Dial, number, **of_call, campaign=f"campaign-{number % 3}"),
            event(DmReached, calls + number, **of_call),
            event(CallEnded, 2 * calls + number, **of_call, talk_seconds=number % 30),
            event(Lost, 3 * calls + number, **own, at=T + number * 10 + 1, reason=f"agent-{number // 2}"),
        ]
        if number % 5 == 0:
            told += [
                event(Dial, number, **of_call | {"agent": f"agent-{number + 1}"}),
                event(Disqualified, 4 * calls + number, **of_call),
                event(Disqualified, 4 * calls + number, **of_call | {"call_id": f"c{number + 1}"}),
            ]
    told += told[::7]
    random.Random(7).shuffle(told)
    half = len(told) // 2
    yield from told[half:]
    yield from sorted(told[:half], key=lambda one: one.occurred_at)


def of_all_times():
    for number, at_ms in enumerate((0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32, T)):
        at = EPOCH + timedelta(milliseconds=at_ms)  # as text: such whole numbers are seconds
        yield event(Dial, number, lead_id="l", at=at)
        yield event(Lost, 100 + number, lead_id=f"l{number}", at=at)


@pytest.mark.parametrize(
    "events",
    [
        list(of_odd_texts()),
        list(of_many_calls(15)),
        list(of_many_calls(16)),
        list(of_many_calls(100)),
        list(of_many_agents(120)),
        [event(Dial, number, lead_id="l") for number in range(1_000)],
        list(of_all_times()),
    ],
    ids=("odd texts", "15 calls", "16 calls", "100 calls", "120 agents", "1,000 events", "all times"),
)
@pytest.mark.parametrize("size", [7, 100_000])
def test_what_is_long_odd_or_many_is_held_alike(tables, events, size):
    decoder = Decoder(Limits(clock="event"))
    defined, other = (Partition(0, 1, FOLD, decoder, kind) for kind in (DefinedTables, tables))
    values = [encode(one) for one in events]
    for start in range(0, len(values), size):
        batch = values[start : start + size]
        expected, effects = (
            state.apply(batch, [None] * len(batch), [-1] * len(batch), start + len(batch))
            for state in (defined, other)
        )
        assert not expected.rejected
        assert effects.leads == expected.leads
        assert sorted(effects.funnel[:-1]) == sorted(expected.funnel[:-1])
    assert other.tables.rows() == defined.tables.rows()
    assert all(unpack(record) for record in other.tables.logs().values())


def test_a_leads_record_that_is_none_is_refused_not_misread(tables):
    def fold_upon(record):
        state = Partition(0, 1, FOLD, Decoder(Limits(clock="event")), tables)
        state.tables.restore(store(tables, {}), store(tables, {b"l": record}))
        state.apply([encode(event(Dial, 2, lead_id="l"))], [None], [-1], 2)

    state = Partition(0, 1, FOLD, Decoder(Limits(clock="event")), tables)
    good = state.apply([encode(event(Dial, 1, lead_id="l", agent="ann"))], [None], [-1], 1).leads[0][1]
    fold_upon(good)
    for record in (
        good[:-1],
        good[:10],
        good + b"\0",
        b"",
        b"\x01",
        b"\x02",
        b"\xff" * 60,
        b"\x01" + b"\xff" * 60,
        good + bytes((0x22, *range(9), 1, 4)),  # a third answer of a connect
    ):
        with pytest.raises(ValueError, match=r"\w"):
            fold_upon(record)


def test_the_record_of_the_most_crowded_lead_fits_its_changelog(tables):
    settings, some = Settings(), 200
    text = "\U0001f600" * 60

    def of_one_lead():
        own = dict.fromkeys(("lead_id", "campaign", "source", "location", "agent", "team"), text)
        for n in range(some):
            yield DmReached(event_id=f"{text}{n:04}", occurred_at=T + n, call_id=f"{text}{n:04}", **own)

    partition = Partition(0, 1, fold_of(settings), Decoder(Limits(clock="event")), tables)
    values = [encode(event) for event in of_one_lead()]
    effects = partition.apply(values, [None] * some, [T] * some, some)
    ((_, record), _) = effects.leads
    (leads,) = (topic for topic in wanted(settings) if topic.name == leads_changelog(settings.app_id))
    most = fold_of(settings).lead_events
    assert len(record) / some * most < int(leads.config["max.message.bytes"])


@pytest.mark.parametrize(
    "row", [b"", b"\x81", b"\x81\x01", b"\x81\xa1a\x07", b"\x81\x01\xca", b"\x01", b"\x91\x07"]
)
def test_a_row_that_is_none_is_refused_not_misread(tables, row):
    def fold_upon_it():
        state = Partition(0, 1, FOLD, Decoder(Limits(clock="event")), tables)
        state.tables.restore(
            store(tables, {encode_key(("all", 0, "campaign+source", "none", "none")): row}), store(tables, {})
        )
        state.apply([encode(event(Dial, 1, lead_id="l"))], [None], [-1], 1)

    with pytest.raises(ValueError, match=r"\w"):
        fold_upon_it()


def test_an_hour_may_lie_in_two_days_more_than_once(tables):
    """Newfoundland put its clocks back a minute after midnight, which is half an hour into an hour."""
    zone = "America/St_Johns"
    start = 1_289_097_000_000  # 2010-11-07T02:30Z
    events = [event(Dial, n, lead_id=f"l{n}", at=start + n * 60_000, location="x") for n in range(-25, 25)]
    state = Partition(0, 1, replace(FOLD, timezone=zone), Decoder(Limits(clock="event")), tables)
    state.apply([encode(one) for one in events], [None] * 50, [-1] * 50, 50)
    kept = {"minute_hours": 6, "hour_days": 3, "day_days": 400}
    expected = oracle.tables(events, timezone=zone, **kept)
    assert oracle.differences(expected, state.tables.rows()) == []


def test_a_batch_has_a_key_and_a_time_for_each_value(tables):
    state = Partition(0, 1, FOLD, Decoder(Limits(clock="event")), tables)
    value = encode(event(Dial, 1, lead_id="l"))
    for keys, timestamps in (([None], [T] * 3), ([], [T] * 3), ([None] * 3, [T])):
        with pytest.raises(ValueError, match=r"\w"):
            state.apply([value] * 3, keys, timestamps, 3)


def test_a_core_built_from_other_sources_is_not_used(monkeypatch):
    monkeypatch.setattr(choice, "digest", lambda: "others")
    assert tables_for("auto") is DefinedTables
    with pytest.raises(NotBuilt, match="make core"):
        tables_for("core")


def test_a_worker_says_loudly_that_it_folds_by_the_definition_unless_it_was_told_to(monkeypatch, caplog):
    def not_there(name):
        raise ImportError(name)

    caplog.set_level("INFO")
    monkeypatch.setattr(choice, "import_module", not_there)
    assert tables_of(Settings()) is DefinedTables
    assert tables_of(Settings(tables="definition")) is DefinedTables
    with pytest.raises(SettingError, match=r"the core is not built; .*`make core`"):
        tables_of(Settings(tables="core"))
    (loud, quiet) = caplog.records
    assert loud.levelname == "WARNING"
    assert "by the definition, which takes about ten times the CPU: the core is not built" in loud.message
    assert "`make core`" in loud.message
    assert quiet.levelname == "INFO"


def test_a_core_of_before_is_told_and_nothing_of_it_is_used(monkeypatch):
    of_before = ModuleType("callfunnel.streams._core")
    of_before.SOURCES = "others"
    monkeypatch.setitem(sys.modules, of_before.__name__, of_before)
    monkeypatch.setattr(streams, "_core", of_before, raising=False)
    monkeypatch.delitem(sys.modules, "callfunnel.streams.by_core", raising=False)
    assert "the core was built from other sources than these" in choice.not_built()
    assert tables_for("auto") is DefinedTables

from collections import Counter, defaultdict
from datetime import UTC, datetime
from hashlib import sha256

import orjson
import pytest

from callfunnel.agents.demo import bank_marketing
from callfunnel.schemas.codec import Decoder, Limits, Rejected


@pytest.fixture(scope="module")
def bundled():
    return list(bank_marketing.events(bank_marketing.read()))


def row(**changes):
    typical = {
        "day": "5",
        "month": "may",
        "duration": "100",
        "campaign": "1",
        "poutcome": "unknown",
        "y": "no",
    }
    return typical | changes


def events(*rows):
    return list(bank_marketing.events(rows))


def when(event):
    return f"{datetime.fromtimestamp(event['occurred_at'] / 1000, UTC):%Y-%m-%d %H:%M:%S}"


def test_the_bundled_file_is_the_one_its_readme_describes():
    digest = sha256(bank_marketing.BUNDLED.read_bytes()).hexdigest()
    assert digest == "bf121977d403576f502546a012a53c95dc6aac19a250d52a81fe9cb46e943028"
    assert digest in (bank_marketing.BUNDLED.parent / "README.md").read_text()


def test_the_bundled_file_has_the_published_figures():
    rows = list(bank_marketing.read())
    assert len(rows) == 45_211
    assert sum(row["y"] == "yes" for row in rows) == 5_289
    assert sum(int(row["campaign"]) for row in rows) == 124_956


def test_every_row_becomes_the_events_the_mapping_names(bundled):
    assert Counter(event["type"] for event in bundled) == {
        "dial": 124_956,
        "connect": 45_211,
        "dm_reached": 45_211,
        "call_ended": 45_211,
        "won": 5_289,
    }
    assert len(bundled) == bank_marketing.EVENTS == 265_878
    assert len({event["lead_id"] for event in bundled}) == 45_211


def test_leads_fall_into_the_years_and_sources_of_the_table(bundled):
    reached = [event for event in bundled if event["type"] == "dm_reached"]
    assert Counter(event["campaign"] for event in reached) == {
        "term-deposit-2008": 27_729,
        "term-deposit-2009": 14_862,
        "term-deposit-2010": 2_620,
    }
    assert Counter(event["source"] for event in reached) == {
        "new": 36_959,
        "previous-failure": 4_901,
        "previous-other": 1_840,
        "previous-success": 1_511,
    }


def test_765_short_calls_without_a_sale_are_immediate_hangups(bundled):
    calls = defaultdict(dict)
    for event in bundled:
        calls[event["call_id"]][event["type"]] = event
    short = [call for call in calls.values() if call.get("call_ended", {}).get("talk_seconds", 99) < 15]
    assert len(short) == 767
    assert sum("won" not in call for call in short) == 765


def test_events_come_in_event_time_order_and_each_has_its_own_id(bundled):
    times = [event["occurred_at"] for event in bundled]
    assert times == sorted(times)
    assert len({event["event_id"] for event in bundled}) == len(bundled)
    assert (when(bundled[0]), when(bundled[-1])) == ("2008-05-02 19:51:11", "2010-11-17 19:00:01")


def test_every_event_keeps_the_contract(bundled):
    values = [orjson.dumps(event) for event in bundled]
    verdicts = Decoder(Limits()).decode_all(values, [None] * len(values), [-1] * len(values))
    assert [verdict for verdict in verdicts if isinstance(verdict, Rejected)] == []


def test_an_event_says_only_what_the_table_holds(bundled):
    said = {field for event in bundled for field in event}
    identity = {"event_id", "type", "occurred_at", "lead_id", "call_id"}
    assert said == identity | {"campaign", "source", "answered_by", "talk_seconds"}


def test_a_sale_is_made_one_second_before_the_end_of_the_call_it_belongs_to():
    dial, connect, reached, won, ended = events(row(y="yes", duration="8"))
    assert [when(event) for event in (dial, connect, reached)] == ["2008-05-05 09:00:00"] * 3
    assert (when(won), when(ended)) == ("2008-05-05 09:00:07", "2008-05-05 09:00:08")
    assert won["call_id"] == ended["call_id"] == reached["call_id"] == "bank-00001-call-1"
    assert ended["talk_seconds"] == 8


def test_earlier_attempts_lie_an_hour_of_calling_time_apart_and_skip_nights_and_weekends():
    dials = [event for event in events(row(campaign="14")) if event["type"] == "dial"]
    assert [when(dial) for dial in dials] == [
        "2008-05-01 18:00:00",
        "2008-05-01 19:00:00",
        *(f"2008-05-02 {hour:02d}:00:00" for hour in range(9, 20)),
        "2008-05-05 09:00:00",
    ]
    assert [dial["event_id"] for dial in dials] == [f"bank-00001-dial-{attempt}" for attempt in range(1, 15)]


def test_the_rows_of_a_day_are_spread_over_the_calling_hours_in_file_order():
    dials = [event for event in events(row(), row(), row(), row(day="6")) if event["type"] == "dial"]
    assert [(dial["lead_id"], when(dial)) for dial in dials] == [
        ("bank-00001", "2008-05-05 09:00:00"),
        ("bank-00002", "2008-05-05 12:40:00"),
        ("bank-00003", "2008-05-05 16:20:00"),
        ("bank-00004", "2008-05-06 09:00:00"),
    ]


def test_a_month_that_goes_back_begins_the_next_year():
    rows = (row(month=month) for month in ("nov", "jan", "dec", "jan"))
    reached = [event for event in events(*rows) if event["type"] == "dm_reached"]
    assert [when(event)[:7] for event in reached] == ["2008-11", "2009-01", "2009-12", "2010-01"]
    assert [event["campaign"][-4:] for event in reached] == ["2008", "2009", "2009", "2010"]


@pytest.mark.parametrize(
    ("outcome", "source"),
    [
        ("unknown", "new"),
        ("success", "previous-success"),
        ("failure", "previous-failure"),
        ("other", "previous-other"),
    ],
)
def test_the_source_is_the_outcome_of_the_campaign_before(outcome, source):
    assert {event["source"] for event in events(row(poutcome=outcome))} == {source}

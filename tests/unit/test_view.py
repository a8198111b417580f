"""What a view tells and keeps, without a broker; the rest is in the integration tests."""

import asyncio
import traceback
from datetime import UTC, datetime

import orjson
import pytest
from aiokafka import TopicPartition

from callfunnel.agents.config import Settings
from callfunnel.agents.remedies import REMEDIES
from callfunnel.agents.view.api import funnel_document
from callfunnel.agents.view.arrivals import Told
from callfunnel.agents.view.feed import Changes
from callfunnel.agents.view.snapshot import Funnel, View
from callfunnel.streams.records import PlainRecords
from callfunnel.streams.rows import (
    POSITION_KEY,
    Position,
    encode_base_key,
    encode_columns,
    encode_key,
    encode_position,
)

NOW = int(datetime(2026, 3, 29, 14, 7, 31, tzinfo=UTC).timestamp())
TODAY = NOW - NOW % 86_400


def test_a_view_knows_how_long_the_workers_keep_days():
    funnel = View.of(Settings(pane_retention_day_days=30))._new_funnel()
    for resolution, pane, leads in (("1d", TODAY, 1), ("all", 0, 2)):
        key = orjson.dumps([resolution, pane, "campaign+source", "spring", "web"])
        funnel.apply(0, key, orjson.dumps({"uncalled": leads}))
    assert funnel.snapshot(NOW).uncalled["spring", "web"].oldest_s == NOW - 30 * 86_400


def position(**fields):
    return encode_position(Position(**{"offset": 1, "watermark_ms": NOW * 1000, "fold": "a"} | fields))


def test_where_days_begin_and_how_long_they_are_kept_is_what_the_tables_say(sums):
    funnel = Funnel(UTC, 400, sums)
    midnight = TODAY - 3_600  # in Berlin
    for resolution, pane, leads in (("1d", TODAY, 1), ("1d", midnight, 20), ("all", 0, 23)):
        key = orjson.dumps([resolution, pane, "campaign+source", "spring", "web"])
        funnel.apply(0, key, orjson.dumps({"leads_dialed": leads, "uncalled": leads}))

    def dialed():
        return funnel.snapshot(NOW).windows["today"]["campaign+source"]["spring", "web"]["leads_dialed"]

    funnel.apply(0, POSITION_KEY, position())
    assert dialed() == 1  # the view's own: what was written before positions said it
    assert funnel.snapshot(NOW).uncalled["spring", "web"].oldest_s == NOW - 400 * 86_400
    funnel.apply(1, POSITION_KEY, position(timezone="Europe/Berlin", days_kept=30))
    assert dialed() == 1 + 20
    assert funnel.snapshot(NOW).uncalled["spring", "web"].oldest_s == NOW - 30 * 86_400


def test_rows_of_different_folds_have_no_sum(sums):
    funnel = Funnel(UTC, new_sums=sums)
    funnel.apply(0, POSITION_KEY, position())
    funnel.apply(2, POSITION_KEY, position(timezone="UTC"))
    assert funnel.contradiction is None
    funnel.apply(1, POSITION_KEY, position(fold="b", timezone="Europe/Berlin"))
    assert funnel.contradiction == (
        "no numbers: partitions 0, 2: fold a (UTC); 1: fold b (Europe/Berlin). The tables are made with "
        "different settings of the fold. Workers derive the rows anew, one partition after the other: wait "
        "for it. Where it stops, no worker with the new settings runs: start one, and "
        f"{REMEDIES['fold-adopt']}"
    )
    funnel.apply(1, POSITION_KEY, position(offset=2))
    assert funnel.contradiction is None


def dialed_on(generation, n):
    key = encode_key(("all", 0, "campaign+source", "spring", "web"), generation)
    return key, encode_columns({"leads_dialed": n})


def test_a_view_shows_the_fold_before_until_every_partition_has_turned(sums):
    funnel = Funnel(UTC, new_sums=sums)
    for number, n in ((0, 1), (1, 20)):
        funnel.apply(number, *dialed_on(0, n))
        funnel.apply(number, POSITION_KEY, position())

    def dialed():
        assert funnel.contradiction is None
        return funnel.snapshot(NOW).windows["all"]["campaign+source"]["spring", "web"]["leads_dialed"]

    assert dialed() == 21
    turned = position(fold="b", generation=1, offset=5)
    funnel.apply(0, *dialed_on(1, 300))
    assert dialed() == 21
    funnel.apply(0, POSITION_KEY, turned)
    funnel.apply(0, dialed_on(0, 1)[0], None)  # the worker deletes what is no longer in force
    assert (dialed(), funnel.turned, funnel.positions[0].offset) == (21, [0], 1)
    funnel.apply(1, *dialed_on(0, 21))
    funnel.apply(1, POSITION_KEY, position(offset=2))
    assert (dialed(), funnel.positions[1].offset) == (22, 2)
    funnel.apply(1, *dialed_on(1, 4_000))
    funnel.apply(1, POSITION_KEY, turned)
    assert (dialed(), funnel.turned, funnel.positions[0].offset) == (4_300, [], 5)
    funnel.apply(1, dialed_on(0, 21)[0], None)
    assert dialed() == 4_300


def archived_at(n, fold="a", **columns):
    key = encode_base_key(fold, "campaign+source", ("spring", "web"))
    return key, encode_columns({"leads_dialed": n, **columns})


def test_archived_leads_count_in_all_time_whatever_fold_counted_them_and_have_no_age(sums):
    funnel = Funnel(UTC, new_sums=sums)
    funnel.apply(0, *dialed_on(0, 1))
    funnel.apply(0, *archived_at(20))
    funnel.apply(0, *archived_at(300, "b", uncalled=7, leads_created=307))
    funnel.apply(1, *archived_at(4_000))
    horizon_ms = (TODAY - 400 * 86_400) * 1000
    for number in (0, 1):
        funnel.apply(number, POSITION_KEY, position(horizon_ms=horizon_ms))
    shown = funnel.snapshot(NOW)
    assert shown.windows["all"]["campaign+source"]["spring", "web"]["leads_dialed"] == 4_321
    document = funnel_document(shown, now_s=NOW, delay_s=None, window="all")
    assert document["uncalled"]["leads"] == 0
    assert document["archived"] == {
        "before_timestamp_seconds": horizon_ms / 1000,
        "leads": 307,
        "uncalled": 7,
    }


def test_what_is_archived_of_a_partition_that_has_turned_is_shown_with_its_new_rows(sums):
    funnel = Funnel(UTC, new_sums=sums)
    for number in (0, 1):
        funnel.apply(number, *dialed_on(0, 10))
        funnel.apply(number, POSITION_KEY, position())

    def dialed():
        assert funnel.contradiction is None
        return funnel.snapshot(NOW).windows["all"]["campaign+source"]["spring", "web"]["leads_dialed"]

    assert dialed() == 20
    funnel.apply(0, *dialed_on(1, 10))
    turned = position(fold="b", generation=1)
    funnel.apply(0, POSITION_KEY, turned)
    assert dialed() == 20
    funnel.apply(0, *dialed_on(1, 7))  # three of its leads are archived then
    funnel.apply(0, *archived_at(3, "b"))
    funnel.apply(0, POSITION_KEY, turned)
    assert dialed() == 20
    funnel.apply(1, *dialed_on(1, 10))
    funnel.apply(1, POSITION_KEY, turned)
    assert dialed() == 20
    funnel.apply(0, *dialed_on(1, 6))
    funnel.apply(0, *archived_at(4, "b"))
    funnel.apply(0, POSITION_KEY, turned)
    assert dialed() == 20


def test_a_view_that_starts_while_rows_are_derived_has_no_numbers_until_all_have_turned(sums):
    funnel = Funnel(UTC, new_sums=sums)
    funnel.apply(0, POSITION_KEY, position(fold="b", generation=1))
    funnel.apply(0, *dialed_on(1, 300))
    funnel.apply(1, *dialed_on(0, 20))
    funnel.apply(1, POSITION_KEY, position())
    assert "derive the rows anew" in funnel.contradiction
    funnel.apply(1, *dialed_on(1, 4_000))
    funnel.apply(1, POSITION_KEY, position(fold="b", generation=1))
    assert funnel.contradiction is None
    sums = funnel.snapshot(NOW).windows["all"]["campaign+source"]["spring", "web"]
    assert sums["leads_dialed"] == 4_300


def test_a_view_has_no_numbers_while_its_tables_contradict_each_other(sums):
    view, funnel = View({}, "changelog", zone=UTC), Funnel(UTC, new_sums=sums)
    funnel.apply(0, POSITION_KEY, position())
    view._refresh(funnel, True)
    assert (view.standing().state, view.not_ready()) == ("current", None)
    funnel.apply(1, POSITION_KEY, position(fold="b"))
    view._refresh(funnel, True)
    assert (view.standing().state, view.current) == ("catching_up", None)
    assert view.not_ready() == funnel.contradiction
    funnel.apply(1, POSITION_KEY, position(offset=2))
    view._refresh(funnel, True)
    assert view.standing().state == "current"


def test_a_view_knows_which_partitions_are_poisoned():
    funnel = Funnel(UTC)
    for number, poison in enumerate(("none", "found", "accepted")):
        position = Position(offset=1, watermark_ms=NOW, fold="f", rejected_share=number / 4, poison=poison)
        funnel.apply(number, POSITION_KEY, encode_position(position))
    snapshot = funnel.snapshot(NOW)
    assert snapshot.poisoned == {1: 0.25, 2: 0.5}
    assert funnel_document(snapshot, now_s=NOW, delay_s=None)["poisoned"] == {"1": 0.25, "2": 0.5}


@pytest.mark.parametrize(
    ("key", "value", "rollup"),
    [
        (b'["1m",0,"team+agent","north","ann"]', b'{"north":"ann"}', "team+agent"),
        (b'["1m",0,"team+agent","north","ann"]', b'{"ann":1,}', "team+agent"),
        (b'["1m",0,"team+agent","north","ann"]', b'"ann"', "team+agent"),
        (b'["1m",0,"team+agent","north","ann"]', b'{"ann \xff":1}', "team+agent"),
        (b'["north","ann"]', b"{}", "unknown"),
        (b'["1m",0,{"ann":1}]', b"{}", "unknown"),
        (b"ann of north \xff", b"{}", "unknown"),
        (None, b'{"ann":1}', "unknown"),
        (b'["position"]', b'{"ann":"north"}', "unknown"),
    ],
)
def test_what_is_no_row_is_told_by_its_place_and_never_by_whom_it_is_of(key, value, rollup):
    view = View({}, "changelog", zone=UTC)
    changes = Changes([PlainRecords.of([16], [key], [value])], value if key == POSITION_KEY else None)
    applied = view._apply(Funnel(UTC), TopicPartition("changelog", 3), changes, 17)
    with pytest.raises(RuntimeError) as failed:
        asyncio.run(applied)
    assert str(failed.value).startswith(
        f"changelog[3] holds what is no row of the funnel table (rollup {rollup}, before offset 17): "
    )
    told = "".join(traceback.format_exception(failed.value, limit=0))
    assert "ann" not in told
    assert "north" not in told


class Asked:
    """Stands in for what asks about the source."""

    topic = "call-events"

    def __init__(self):
        self.told = self.trouble = None


class Watched:
    """A view of one partition, `seconds` after `NOW`, with its events counted up to offset 40."""

    def __init__(self, clock="wall", newest_s=NOW):
        self.seconds = 0.0
        self.asked = Asked()
        self.view = View(
            {},
            "changelog",
            zone=UTC,
            clock=clock,
            source=lambda *_: self.asked,
            now=lambda: NOW + self.seconds,
            ticks=lambda: self.seconds,
        )
        self.funnel = Funnel(UTC)
        minute = newest_s - newest_s % 60
        for resolution, pane in (("1m", minute), ("1h", minute - minute % 3_600), ("all", 0)):
            key = orjson.dumps([resolution, pane, "campaign+source", "spring", "web"])
            self.funnel.apply(0, key, b'{"events_dialed":7}')
        self.position(40, newest_s)

    def position(self, offset, newest_s):
        position = Position(offset=offset, watermark_ms=newest_s * 1000, fold="f")
        self.funnel.apply(0, POSITION_KEY, encode_position(position))

    def told(self, end, *, before=0, start=0):
        """The broker answers that the source ends there, and the view looks."""
        self.asked.told = Told(self.seconds, {0: range(start, end)}, {0: before})
        self.view._answers.hear({})
        return self.refresh()

    def refresh(self):
        return self.view._refresh(self.funnel, changed=False)

    @property
    def state(self):
        return self.view.standing().state

    @property
    def verdict(self):
        return self.view.standing().verdict

    @property
    def reason(self):
        return self.view.standing().reason

    def dials(self):
        columns = self.view.current.windows["5m"]["campaign+source"].get(("spring", "web"), {})
        return columns.get("events_dialed", 0)


def test_there_are_no_numbers_before_the_broker_has_said_where_the_source_ends():
    watched = Watched()
    assert (watched.state, watched.view.current) == ("connecting", None)
    assert watched.refresh() is False
    assert watched.view.not_ready() == "the broker has not said yet where call-events ends"
    assert watched.told(40) is True
    assert (watched.state, watched.view.not_ready()) == ("current", None)
    assert ((watched.verdict, watched.reason), watched.dials()) == (("live", ""), 7)


def test_while_no_broker_answers_there_are_no_numbers_and_none_are_made():
    watched = Watched()
    watched.told(40)
    shown = watched.view.snapshot
    watched.seconds = 180
    assert watched.refresh() is False
    assert (watched.state, watched.view.current) == ("stale", None)
    assert (watched.verdict, watched.reason) == (
        "stale",
        "no broker has answered for 180 s: the numbers stand still",
    )
    standing = watched.view.standing()
    assert (standing.state, standing.lag, standing.source_lags) == ("stale", None, {})
    assert standing.complete_s == NOW
    watched.view._answers.hear({})
    assert watched.view.current is shown
    assert watched.told(40) is True
    assert watched.view.current.now_s == NOW + 180


def test_a_broker_that_refuses_connections_leaves_the_numbers_standing():
    watched = Watched()
    watched.told(40)
    watched.view._phase, watched.view._why = "connecting", "the broker does not answer: refused"
    assert (watched.verdict, watched.reason) == (
        "stale",
        "the broker does not answer: refused: the numbers stand still",
    )
    assert watched.view.current is None


def test_windows_end_where_the_numbers_are_complete_while_records_wait():
    watched = Watched()
    watched.told(40)
    assert watched.dials() == 7
    for watched.seconds in (60, 300, 1_800):
        watched.told(1_540)
        assert (watched.verdict, watched.reason) == (
            "behind",
            "1,500 records of call-events are not counted yet, and the numbers are those of "
            f"{watched.seconds} s ago: check that enough workers run, and what their /-/ready says",
        )
        assert (watched.view.current.now_s, watched.view.now_s, watched.dials()) == (NOW, NOW, 7)
        assert watched.view.standing().complete_s == NOW
        assert watched.view.standing().source_lags == {0: 1_500}
        assert watched.view.delay_s == watched.seconds
    watched.position(1_540, NOW + 1_800)
    watched.told(1_540)
    assert (watched.verdict, watched.dials()) == ("live", 0)
    assert watched.view.current.now_s == NOW + 1_800


def test_a_short_delay_is_no_reason_to_show_the_past():
    watched = Watched()
    watched.told(40)
    watched.seconds = 10
    watched.told(50)
    assert ((watched.verdict, watched.reason), watched.view.now_s) == (("live", ""), NOW + 10)
    assert watched.view.standing().complete_s == NOW


def test_windows_end_no_further_back_than_minutes_are_held_for():
    """One partition stands still for hours, the others go on and drop their old minutes."""
    watched = Watched()
    watched.told(40)
    watched.seconds = 5 * 3_600
    watched.told(50)
    assert (watched.verdict, watched.view.current.now_s) == ("behind", NOW)
    for number, newest_s in ((0, NOW), (1, NOW + 5 * 3_600)):
        position = Position(offset=40, watermark_ms=newest_s * 1000, fold="f")
        watched.funnel.apply(number, POSITION_KEY, encode_position(position))
    watched.view._refresh(watched.funnel, changed=True)
    assert (watched.verdict, watched.view.current.now_s) == ("behind", NOW + 4 * 3_600)


def test_in_a_replay_windows_end_with_the_newest_event_whatever_waits():
    watched = Watched(clock="event", newest_s=NOW - 86_400)
    watched.told(40)
    assert (watched.verdict, watched.reason) == ("replay", "")
    assert (watched.view.current.now_s, watched.view.now_s) == (NOW - 86_400, NOW - 86_400)
    assert watched.view.delay_s == 0.0
    watched.seconds = 60
    watched.told(1_000)
    assert (watched.verdict, watched.view.current.now_s, watched.dials()) == ("behind", NOW - 86_400, 7)


def test_a_floor_without_events_is_quiet_and_not_live():
    watched = Watched(newest_s=NOW - 3_159)
    watched.told(40)
    assert (watched.verdict, watched.view.delay_s) == ("quiet", 3_159)


def test_before_the_first_event_the_view_says_so():
    watched = Watched()
    watched.funnel = Funnel(UTC)
    watched.told(0)
    assert (watched.verdict, watched.view.delay_s) == ("empty", None)


def test_where_records_wait_and_none_is_counted_yet_the_view_is_behind_and_not_empty():
    watched = Watched()
    watched.funnel = Funnel(UTC)
    watched.told(10_000)
    assert watched.verdict == "behind"
    assert watched.reason == "no event has been counted yet, and records wait in the source"


def test_a_client_that_may_not_ask_about_the_source_does_not_call_the_numbers_live():
    watched = Watched()
    watched.asked.trouble = "this client may not ask about the topic call-events; grant it Describe"
    watched.refresh()
    assert (watched.verdict, watched.state, watched.dials()) == ("unchecked", "current", 7)
    assert watched.reason.startswith(watched.asked.trouble)
    assert watched.view.standing().source_lags == {}


def test_a_source_whose_leader_is_silent_makes_the_numbers_old():
    watched = Watched()
    watched.told(40)
    watched.seconds = 60
    watched.view._answers.hear({})
    watched.refresh()
    assert (watched.verdict, watched.reason) == (
        "behind",
        "the broker has not said for 60 s where call-events ends",
    )
    assert (watched.view.standing().source_lags, watched.view.now_s) == ({}, NOW)


def test_a_source_that_ends_before_the_numbers_is_told():
    watched = Watched()
    watched.told(40)
    watched.seconds = 60
    watched.told(30, before=40)
    assert watched.verdict == "behind"
    assert watched.reason.startswith("call-events/0 ends at offset 30, but the numbers hold later records")


def test_the_lag_of_the_changelog_is_known_when_every_leader_has_told():
    watched = Watched()
    zero, one = (TopicPartition("changelog", number) for number in (0, 1))
    watched.view._answers.watch([zero, one])
    watched.view._read = {zero: 10, one: 20}
    watched.view._answers.hear({zero: 12})
    assert watched.view.standing().lag is None
    watched.view._answers.hear({one: 25})
    assert watched.view.standing().lag == 7

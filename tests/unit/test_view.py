"""What a view tells and keeps, without a broker; the rest is in the integration tests."""

import asyncio
import traceback
from datetime import UTC, datetime

import orjson
import pytest
from aiokafka import TopicPartition

from agents.config import Settings
from agents.view import Funnel, View
from schemas.rows import POSITION_KEY, Position, encode_position

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


def test_where_days_begin_and_how_long_they_are_kept_is_what_the_tables_say():
    funnel = Funnel(UTC, 400)
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
    assert dialed() == 20
    assert funnel.snapshot(NOW).uncalled["spring", "web"].oldest_s == NOW - 30 * 86_400


def test_rows_of_different_folds_have_no_sum():
    funnel = Funnel(UTC)
    funnel.apply(0, POSITION_KEY, position())
    funnel.apply(2, POSITION_KEY, position(timezone="UTC"))
    assert funnel.contradiction is None
    funnel.apply(1, POSITION_KEY, position(fold="b", timezone="Europe/Berlin"))
    assert funnel.contradiction == (
        "no numbers: partitions 0, 2: fold a (UTC); 1: fold b (Europe/Berlin). The tables were "
        "made with different settings of the fold. Start all workers of this app id with the same settings, "
        "under a new app id to build the tables anew"
    )
    funnel.apply(1, POSITION_KEY, position(offset=2))
    assert funnel.contradiction is None


def test_a_view_has_no_numbers_while_its_tables_contradict_each_other():
    view, funnel = View({}, "changelog", zone=UTC), Funnel(UTC)
    funnel.apply(0, POSITION_KEY, position())
    view._refresh(funnel, True)
    assert (view.caught_up, view.not_ready()) == (True, None)
    funnel.apply(1, POSITION_KEY, position(fold="b"))
    view._refresh(funnel, True)
    assert not view.caught_up
    assert view.not_ready() == funnel.contradiction
    funnel.apply(1, POSITION_KEY, position(offset=2))
    view._refresh(funnel, True)
    assert (view.caught_up, view.state) == (True, "live")


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
    applied = view._apply(Funnel(UTC), TopicPartition("changelog", 3), {key: value}, 17)
    with pytest.raises(RuntimeError) as failed:
        asyncio.run(applied)
    assert str(failed.value).startswith(
        f"changelog[3] holds what is no row of the funnel table (rollup {rollup}, before offset 17): "
    )
    told = "".join(traceback.format_exception(failed.value, limit=0))
    assert "ann" not in told
    assert "north" not in told

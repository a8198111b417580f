"""What a view tells and keeps, without a broker; the rest is in the integration tests."""

import asyncio
import traceback
from datetime import UTC, datetime

import orjson
import pytest
from aiokafka import TopicPartition

from agents.config import Settings
from agents.document import funnel_document
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


def test_a_view_knows_which_partitions_are_poisoned():
    funnel = Funnel(UTC)
    for number, poison in enumerate(("none", "found", "accepted")):
        position = Position(offset=1, watermark_ms=NOW, fold="f", rejected_share=number / 4, poison=poison)
        funnel.apply(number, POSITION_KEY, encode_position(position))
    snapshot = funnel.snapshot(NOW)
    assert snapshot.poisoned == {1: 0.25, 2: 0.5}
    assert funnel_document(snapshot, now_s=NOW)["poisoned"] == {"1": 0.25, "2": 0.5}


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

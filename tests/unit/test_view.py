"""What a view tells and keeps, without a broker; the rest is in the integration tests."""

from datetime import UTC, datetime

import orjson

from agents.config import Settings
from agents.view import View

NOW = int(datetime(2026, 3, 29, 14, 7, 31, tzinfo=UTC).timestamp())
TODAY = NOW - NOW % 86_400


def test_a_view_knows_how_long_the_workers_keep_days():
    funnel = View.of(Settings(pane_retention_day_days=30))._new_funnel()
    for resolution, pane, leads in (("1d", TODAY, 1), ("all", 0, 2)):
        key = orjson.dumps([resolution, pane, "campaign+source", "spring", "web"])
        funnel.apply(0, key, orjson.dumps({"uncalled": leads}))
    assert funnel.snapshot(NOW).uncalled["spring", "web"].oldest_s == NOW - 30 * 86_400

"""State that ends: a live floor of two years in a minute, with old events that are sent again."""

import random
from collections import Counter

import pytest

from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams import oracle
from callfunnel.streams.panes import LENGTH_SECONDS
from callfunnel.streams.rows import BASE, decode_columns, decode_key, generation_of
from integration.workers import SEED, alter, record

DAY_MS = LENGTH_SECONDS["1d"] * 1000
START_MS = 1_700_000_000_000
DAYS, HALF = 730, 520
LEADS_A_DAY = 6
KEPT_DAYS = 400
LONG_AGO_DAYS = KEPT_DAYS + 10
"""Whatever partition it is, its horizon has passed by then."""


def floor():
    """By day: new leads; old records sent again, as they were and as of today; a lead that comes back."""
    chance = random.Random(SEED)
    days = []
    for day in range(DAYS):
        today = []
        for number in range(LEADS_A_DAY):
            at_ms = START_MS + day * DAY_MS + chance.randrange(DAY_MS)
            lead = {"lead_id": f"lead-{day}-{number}", "campaign": f"c{number % 2}"}
            for kind in ("lead_created", "dial", "connect")[: chance.randint(1, 3)]:
                event = {"type": kind, "event_id": kind, "occurred_at": at_ms, **lead}
                today.append(record(event))
                at_ms += chance.randrange(600_000)
        today.sort(key=lambda one: one.at_ms)
        if day % 20 == 0 and day >= LONG_AGO_DAYS:
            now_ms = START_MS + (day + 1) * DAY_MS
            old = chance.sample(days[day - LONG_AGO_DAYS], 2)
            today += [*old, *(one._replace(at_ms=now_ms) for one in old)]
            lead_id = f"lead-{day - LONG_AGO_DAYS}-0"
            back = {"type": "dial", "event_id": "back", "occurred_at": now_ms, "lead_id": lead_id}
            today.append(record(back))
        days.append(today)
    return days


def totals(left, partition):
    """The rows, and in those of all time what archived leads add."""
    rows = {key: Counter(columns) for key, columns in left.tables.get(partition, {}).items()}
    for key, value in left.rows[partition].items():
        if generation_of(key) == BASE:
            _, *row = decode_key(key)
            rows.setdefault(("all", *row), Counter()).update(decode_columns(value))
    return rows


def sizes(left):
    return sum(map(len, left.leads.values())), sum(map(len, left.rows.values()))


def started(workers):
    """A worker of a live floor, on a topic that then takes the publishers' word on when a record was sent."""
    settings, topic = workers.settings, workers.settings.source_topic
    alter(settings, topic, message_timestamp_type="LogAppendTime")
    worker = workers.start(instance="w1", clock="wall").wait_until_ready()
    alter(settings, topic, message_timestamp_type="CreateTime")
    return worker


@pytest.mark.broker("kafka")
def test_two_years_leave_what_one_year_and_a_month_leave_and_count_nothing_twice(workers):
    days = floor()
    records = [one for today in days for one in today]
    first = sum(map(len, days[:HALF]))
    worker = started(workers)
    workers.publish(records[:first])
    early = sizes(workers.wait(first))
    worker.kill()
    worker = started(workers)
    workers.publish(records[first:])
    left = workers.wait(len(records))

    reasons = Counter(dict(one.headers)["callfunnel.reason"] for one in left.dead)
    copies = sum(day % 20 == 0 for day in range(LONG_AGO_DAYS, DAYS))
    assert reasons == {b"archived": 2 * copies, b"too_old": 2 * copies}

    decoder = Decoder(Limits(retention_ms=KEPT_DAYS * DAY_MS))
    for partition, arrived in left.source.items():
        verdicts = [decoder.decode(one.value, one.key, one.timestamp) for one in arrived]
        events = [one for one in verdicts if hasattr(one, "lead_id")]
        expected = oracle.tables(oracle.as_they_count(events, kept_days=KEPT_DAYS))
        assert oracle.lost_and_doubled(expected, totals(left, partition)) == (0, 0)

    late = sizes(left)
    held = worker.metric('callfunnel_worker_table_rows{table="leads"}')
    for before, after in (*zip(early, late, strict=True), (late[0], held)):
        assert 0.9 * before < after < 1.1 * before

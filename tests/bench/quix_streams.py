"""The job in Quix Streams: grouped by campaign, source and type, then counted in tumbling minutes.

One of callfunnel's three rollups, minutes only. Grouping sends every event through a topic of its own.
"""

import os
import sys
from datetime import timedelta

from quixstreams import Application

from bench.contender import finish

BROKER, TOPIC, EVENTS = sys.argv[1], sys.argv[2], int(sys.argv[3])
STAGES = {"lead_created", "dial", "connect", "dm_reached", "qualified", "won"}


def main() -> None:
    app = Application(
        broker_address=BROKER,
        consumer_group=f"bench-quix-{os.getpid()}",
        auto_offset_reset="earliest",
        state_dir=sys.argv[4],
        loglevel="ERROR",
        processing_guarantee="at-least-once",
    )
    windows: dict[tuple[str, int], int] = {}
    counted = 0

    def keep(value: dict[str, int], key: str, *_: object) -> None:
        nonlocal counted
        windows[key, value["start"]] = value["value"]
        counted += 1
        if counted == EVENTS:
            app.stop()

    events = app.topic(
        TOPIC,
        value_deserializer="json",
        key_deserializer="bytes",
        timestamp_extractor=lambda value, *_: value["occurred_at"],
    )
    stream = app.dataframe(events)
    stream = stream.group_by(
        lambda event: f"{event.get('campaign', 'none')}|{event.get('source', 'none')}|{event['type']}",
        name="rollup",
        key_serializer="str",
        key_deserializer="str",
    )
    stream = stream.tumbling_window(timedelta(minutes=1), grace_ms=timedelta(days=1)).count().current()
    stream.update(keep, metadata=True)
    app.run()
    totals: dict[tuple[str, str, str], int] = {}
    for (key, _), n in windows.items():
        campaign, source, kind = key.split("|")
        if kind in STAGES:
            totals[campaign, source, kind] = totals.get((campaign, source, kind), 0) + n
    finish(totals)


if __name__ == "__main__":
    main()

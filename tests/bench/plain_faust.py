"""The job as Faust's manual teaches it: an agent, tumbling windows, one message at a time.

One table for each rollup, minutes only: less than a quarter of callfunnel's rows. Its tables are durable, and
not exact.
"""

import os
import sys

import faust

from bench.contender import finish

BROKER, TOPIC, EVENTS = sys.argv[1], sys.argv[2], int(sys.argv[3])
STAGES = {"lead_created", "dial", "connect", "dm_reached", "qualified", "won"}

app = faust.App(
    f"bench-faust-{os.getpid()}",
    broker=f"kafka://{BROKER}",
    topic_partitions=4,
    store="memory://",
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
    datadir=sys.argv[4],
)


class Event(faust.Record, serializer="json"):
    event_id: str
    type: str
    occurred_at: int
    lead_id: str
    campaign: str = "none"
    source: str = "none"
    agent: str = "none"
    team: str = "none"
    location: str = "none"


def windowed(name: str) -> faust.Table:
    return app.Table(name, default=int, partitions=4).tumbling(60.0, key_index=False)


topic = app.topic(TOPIC, value_type=Event, key_type=bytes)
by_campaign, by_agent, by_location = windowed("campaign"), windowed("agent"), windowed("location")
done = 0


@app.agent(topic)
async def count(stream: faust.StreamT) -> None:
    global done
    async for event in stream:
        for table, key in (
            (by_campaign, f"{event.campaign}|{event.source}|{event.type}"),
            (by_agent, f"{event.team}|{event.agent}|{event.type}"),
            (by_location, f"{event.location}|{event.type}"),
        ):
            table[key] += 1
        done += 1
        if done == EVENTS:
            app.loop.create_task(end())


async def end() -> None:
    await app.producer.flush()
    totals: dict[tuple[str, str, str], int] = {}
    for (key, _), n in by_campaign.table.data.items():
        campaign, source, kind = key.split("|")
        if kind in STAGES:
            totals[campaign, source, kind] = totals.get((campaign, source, kind), 0) + n
    finish(totals)
    os._exit(0)


if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--loglevel=error", "--without-web"]
    app.main()

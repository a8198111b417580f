"""The honest baseline: the funnel as Faust's own manual would have it, one windowed table and nothing else.

It counts events by minute, type, campaign and source, duplicates included, with Faust's defaults
(at least once, memory store). Run by the plan `naive` in the place of `callfunnel worker`.
"""

import os
from typing import Any

import faust

COUNTED = ("lead_created", "dial", "connect", "dm_reached", "qualified", "won")

app = faust.App(
    os.environ["NAIVE_APP"],
    broker=f"kafka://{os.environ['NAIVE_BROKER']}",
    store="memory://",
    datadir=os.environ["NAIVE_FOLDER"],
    topic_partitions=int(os.environ["NAIVE_PARTITIONS"]),
    topic_disable_leader=True,
    web_enabled=False,
    consumer_auto_offset_reset="earliest",
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    broker_commit_interval=0.5,
)
events = app.topic(os.environ["NAIVE_SOURCE"], value_serializer="json")
counts = app.Table("counts", default=int).tumbling(60.0, key_index=False).relative_to_stream()


@app.agent(events)
async def count(stream: Any) -> None:
    async for event in stream:
        if event["type"] in COUNTED:
            counts[f"{event['type']},{event['campaign']},{event['source']}"] += 1

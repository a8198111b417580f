"""What many would write first: consume, decode, count in dicts. No state that outlives the process.

The same tables as callfunnel's, in the same rollups and resolutions, from the same events: duplicates are
left out by event id, every lead keeps the first arrival of each stage, response times have a histogram. Left
out, because no short loop has it: implied arrivals, hang-ups, corrections by late events, validation beyond
the decoder, dead letters, routing, and everything about durability.
"""

import sys
from bisect import bisect_left
from collections import defaultdict
from itertools import product

import msgspec
import orjson

from bench.contender import Stream, finish

STAGES = ("lead_created", "dial", "connect", "dm_reached", "qualified", "won")
BOUNDS_MS = [s * 1000 for s in (5, 15, 30, 60, 120, 180, 240, 300, 600, 900, 1800, 3600, 14400, 28800, 86400)]
RESOLUTIONS_MS = (60_000, 3_600_000, 86_400_000, 1 << 62)


Fields = tuple[str, str, int, str, str, str, str, str, str]


class Event(msgspec.Struct):
    event_id: str
    type: str
    occurred_at: int
    lead_id: str
    campaign: str = "none"
    source: str = "none"
    agent: str = "none"
    team: str = "none"
    location: str = "none"


def with_orjson(value: bytes) -> Fields:
    event = orjson.loads(value)
    get = event.get
    return (
        *(event["event_id"], event["type"], event["occurred_at"], event["lead_id"]),
        *(get("campaign", "none"), get("source", "none")),
        *(get("agent", "none"), get("team", "none"), get("location", "none")),
    )


_typed = msgspec.json.Decoder(Event).decode


def with_msgspec(value: bytes) -> Fields:
    e = _typed(value)
    return (
        *(e.event_id, e.type, e.occurred_at, e.lead_id),
        *(e.campaign, e.source, e.agent, e.team, e.location),
    )


def main(decoder: str) -> None:
    decode = with_orjson if decoder == "orjson" else with_msgspec
    seen: set[str] = set()
    rows: defaultdict[tuple, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    first: dict[str, dict[str, int]] = {}
    stream = Stream.from_argv()
    for value in stream:
        event_id, kind, at, lead_id, campaign, source, agent, team, location = decode(value)
        if event_id in seen:
            continue
        seen.add(event_id)
        groups = (
            ("campaign+source", campaign, source),
            ("team+agent", team, agent),
            ("location", location),
        )
        arrivals = first.setdefault(lead_id, {})
        is_first = kind in STAGES and kind not in arrivals
        for length, group in product(RESOLUTIONS_MS, groups):
            row = rows[length, at - at % length, group]
            row[kind] += 1
            if is_first:
                row["leads " + kind] += 1
        if is_first:
            arrivals[kind] = at
            created = arrivals.get("lead_created")
            if kind == "dial" and created is not None:
                waited = at - created
                for length in RESOLUTIONS_MS:
                    row = rows[length, created - created % length, groups[0]]
                    row[f"attempt {bisect_left(BOUNDS_MS, waited)}"] += 1
                    row["attempt_ms"] += waited
    finish(
        {
            (group[1], group[2], kind): n
            for (length, _, group), row in rows.items()
            if length == RESOLUTIONS_MS[-1] and group[0] == "campaign+source"
            for kind, n in row.items()
            if kind in STAGES
        }
    )


if __name__ == "__main__":
    main(sys.argv[4])

"""Events whose every size is a number: leads, agents, segments, and how many happen in a second.

On the floor of `agents/demo/generator.py` agents, leads and rate hang together, as on a real
one; to see what each of them costs, it must change alone.
"""

import random
from collections.abc import Iterator

from integration.workers import Event

LIFE = ("lead_created", "dial", "connect", "call_ended")
IN_HAND = 20_000
"""Leads under way at a time: what happens next to a lead comes so many events later."""
WAVE = IN_HAND * len(LIFE)
"""So many events end the lives of all leads in hand."""
START_MS = 1_780_300_800_000
PER_SECOND = 250


SEED = 7


def worked(events: int, agents: int, campaigns: int = 5, sources: int = 3) -> Iterator[Event]:
    """Leads are called, one after the other: each lives its life, and is then left alone."""
    for number in range(events):
        wave, place = divmod(number, WAVE)
        lead, step = wave * IN_HAND + place % IN_HAND, place // IN_HAND
        yield event(f"lead-{lead:09d}", step, lead, agents, happens_ms(number), campaigns, sources)


def untouched(leads: int, agents: int, campaigns: int = 5, sources: int = 3) -> Iterator[Event]:
    """Leads that were called once, all in the same minute, an hour ago: they are kept, and leave few rows."""
    for lead in range(leads):
        at_ms = START_MS - 3_600_000 + lead * 60_000 // leads
        yield event(f"kept-{lead:09d}", 1, lead, agents, at_ms, campaigns, sources)


def returned(events: int, leads: int, agents: int, campaigns: int = 5, sources: int = 3) -> Iterator[Event]:
    """Calls of `untouched` leads, each of a random one."""
    chance = random.Random(SEED)
    for number in range(events):
        lead = chance.randrange(leads)
        called = event(f"kept-{lead:09d}", 1, lead, agents, happens_ms(number), campaigns, sources)
        yield called | {"event_id": f"returned-{number}", "call_id": f"returned-{number}"}


def happens_ms(number: int) -> int:
    return START_MS + number * 1000 // PER_SECOND


def event(
    lead_id: str, step: int, number: int, agents: int, at_ms: int, campaigns: int = 5, sources: int = 3
) -> Event:
    agent, segment = number % agents, number % (campaigns * sources)
    return {
        "event_id": f"{lead_id}-{step}", "type": LIFE[step], "occurred_at": at_ms, "lead_id": lead_id,
        "call_id": f"{lead_id}-call",
        "campaign": f"campaign-{segment // sources}", "source": f"source-{segment % sources}",
        "agent": f"agent-{agent}", "team": f"team-{agent // 12}", "location": f"place-{agent % 3}",
    }  # fmt: skip

"""What is counted: rollups, columns and bins, each declared once. Definitions: `streams/README.md`.

The ids are those of the changelogs: they are only ever added to, and an id never means something else.
"""

from bisect import bisect_left
from collections.abc import Mapping

from msgspec import Struct

from callfunnel.schemas.events import STAGES


class Rollup(Struct, frozen=True):
    """The dimensions by which rows are told apart."""

    id: int
    name: str
    dimensions: tuple[str, ...]
    of_all_time: bool = False
    """Whether it has rows without a date, too: of agents and places, nobody asks for more than a day."""


SEGMENT = Rollup(0, "campaign+source", ("campaign", "source"), of_all_time=True)
PERSON = Rollup(1, "team+agent", ("team", "agent"))
PLACE = Rollup(2, "location", ("location",))
ROLLUPS = (SEGMENT, PERSON, PLACE)

RESPONSE_BOUNDS_SECONDS = (5, 15, 30, 60, 120, 180, 240, 300, 600, 900, 1800, 3600, 14400, 28800, 86400)
"""Upper bounds of the response times; the last bin, `inf`, has none. 300 is the five-minute rule."""
BINS = (*map(str, RESPONSE_BOUNDS_SECONDS), "inf")

EVENTS = tuple(f"events_{stage}" for stage in STAGES)
EVENTS_DISQUALIFIED = "events_disqualified"
EVENTS_LOST = "events_lost"
MACHINE_ANSWERS = "machine_answers"
DM_HANGUPS = "dm_hangups"
AGENT_HANGUPS = "agent_hangups"
LEADS = tuple(f"leads_{stage}" for stage in STAGES)
IMPLIED = "implied"
AWAITED = "awaited"
UNCALLED = "uncalled"
DIALED_BEFORE_CREATION = "dialed_before_creation"
ATTEMPT_MS = "attempt_ms"
CONNECT_MS = "connect_ms"
ATTEMPT_BINS = tuple(f"attempt_{bound}" for bound in BINS)
CONNECT_BINS = tuple(f"connect_{bound}" for bound in BINS)

COLUMNS: Mapping[str, int] = {
    name: id_
    for first_id, names in (
        (0, EVENTS),
        (6, LEADS),
        (12, (EVENTS_DISQUALIFIED, EVENTS_LOST, MACHINE_ANSWERS, DM_HANGUPS, AGENT_HANGUPS, IMPLIED)),
        (18, (AWAITED, UNCALLED, DIALED_BEFORE_CREATION, ATTEMPT_MS, CONNECT_MS)),
        (23, ATTEMPT_BINS),
        (39, CONNECT_BINS),
    )
    for id_, name in enumerate(names, first_id)
}
"""The id of each column."""

ACTIVITY: Mapping[str, str] = {
    "lead_created": EVENTS[0],
    "dial": EVENTS[1],
    "connect": EVENTS[2],
    "dm_reached": EVENTS[3],
    "qualified": EVENTS[4],
    "won": EVENTS[5],
    "disqualified": EVENTS_DISQUALIFIED,
    "lost": EVENTS_LOST,
}
"""The column that counts the events of a type; a machine's answer has its own."""

RESPONSE = frozenset(
    (*ATTEMPT_BINS, *CONNECT_BINS, ATTEMPT_MS, CONNECT_MS, AWAITED, UNCALLED, DIALED_BEFORE_CREATION)
)
"""The columns that only `SEGMENT` has: they belong to a lead, not to an agent or a place."""

BOUNDS_MS = tuple(bound * 1000 for bound in RESPONSE_BOUNDS_SECONDS)


def bin_of(duration_ms: int) -> str:
    """The bin of the smallest bound that the duration does not exceed."""
    return BINS[bisect_left(BOUNDS_MS, duration_ms)]

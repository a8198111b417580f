"""The columns of the funnel rows, each name once. Definitions: `streams/README.md`."""

from bisect import bisect_left

from callfunnel.schemas.events import STAGES

EVENTS = tuple(f"events_{stage}" for stage in STAGES)
EVENTS_DISQUALIFIED = "events_disqualified"
EVENTS_LOST = "events_lost"
MACHINE_ANSWERS = "machine_answers"
DM_HANGUPS = "dm_hangups"
AGENT_HANGUPS = "agent_hangups"

LEADS = tuple(f"leads_{stage}" for stage in STAGES)
IMPLIED = "implied"

RESPONSE_BOUNDS_SECONDS = (5, 15, 30, 60, 120, 180, 240, 300, 600, 900, 1800, 3600, 14400, 28800, 86400)
"""Upper bounds of the response times; the last bin, `inf`, has none. 300 is the five-minute rule."""
BINS = (*map(str, RESPONSE_BOUNDS_SECONDS), "inf")
ATTEMPT_BINS = tuple(f"attempt_{bound}" for bound in BINS)
CONNECT_BINS = tuple(f"connect_{bound}" for bound in BINS)
ATTEMPT_MS = "attempt_ms"
CONNECT_MS = "connect_ms"
AWAITED = "awaited"
UNCALLED = "uncalled"
DIALED_BEFORE_CREATION = "dialed_before_creation"

RESPONSE = frozenset(
    (*ATTEMPT_BINS, *CONNECT_BINS, ATTEMPT_MS, CONNECT_MS, AWAITED, UNCALLED, DIALED_BEFORE_CREATION)
)
"""The columns that only rollups with `response` carry: they belong to a lead, not to an agent or a team."""

_BOUNDS_MS = tuple(bound * 1000 for bound in RESPONSE_BOUNDS_SECONDS)


def bin_of(response_ms: int) -> int:
    """The index of the smallest bound that `response_ms` does not exceed."""
    return bisect_left(_BOUNDS_MS, response_ms)

"""What is counted: rollups, columns and histograms, each declared once. Definitions: `streams/README.md`.

The ids are those of the changelogs: they are only ever added to, and an id never means something else.
"""

from bisect import bisect_left
from collections.abc import Mapping
from functools import cached_property

from msgspec import Struct

from callfunnel.schemas.events import STAGES


class Rollup(Struct, frozen=True):
    """The dimensions by which rows are told apart."""

    id: int
    name: str
    dimensions: tuple[str, ...]
    of_all_time: bool = False
    """Whether it has rows without a date, too: of agents and places, nobody asks for more than a day."""
    minutes_kept_s: int = 1 << 40
    """For how many seconds rows of minutes are kept at most."""


_MINUTES_READ_S = 2 * 3_600
"""Of agents and places, minutes are read for an hour, which may end an hour behind the newest event."""

SEGMENT = Rollup(0, "campaign+source", ("campaign", "source"), of_all_time=True)
PERSON = Rollup(1, "team+agent", ("team", "agent"), minutes_kept_s=_MINUTES_READ_S)
PLACE = Rollup(2, "location", ("location",), minutes_kept_s=_MINUTES_READ_S)
ROLLUPS = (SEGMENT, PERSON, PLACE)


class Histogram(Struct, frozen=True, dict=True):
    """Durations of leads, in `SEGMENT`: one column for each bin, and one for their sum in milliseconds."""

    name: str
    """What its columns begin with."""
    help: str
    """What is measured, in words: "Time from … to …"."""
    bounds: tuple[int, ...]
    """The upper bounds of the bins in seconds, ascending; the last bin, `inf`, has none."""
    first_bin_id: int
    """The id of the column of the first bin; those of the others follow it."""
    sum_id: int

    @property
    def ends(self) -> tuple[str, ...]:
        """Where the bins end, as text."""
        return *map(str, self.bounds), "inf"

    @cached_property
    def bins(self) -> tuple[str, ...]:
        """The columns of the bins."""
        return tuple(f"{self.name}_{end}" for end in self.ends)

    @property
    def sum(self) -> str:
        """The column of the sum."""
        return f"{self.name}_ms"

    @property
    def columns(self) -> Mapping[str, int]:
        """The id of each column."""
        return {name: id_ for id_, name in enumerate(self.bins, self.first_bin_id)} | {self.sum: self.sum_id}

    def bin_of(self, duration_ms: int) -> str:
        """The column of the smallest bound that the duration does not exceed."""
        return self.bins[bisect_left(self.bounds, duration_ms / 1000)]


RESPONSE_BOUNDS = (5, 15, 30, 60, 120, 180, 240, 300, 600, 900, 1800, 3600, 14400, 28800, 86400)
"""300 is the five-minute rule."""

FIRST_DIAL = Histogram(
    "attempt", "Time from a lead's creation to its first dial", RESPONSE_BOUNDS, first_bin_id=23, sum_id=21
)
FIRST_ANSWER = Histogram(
    "connect", "Time from a lead's creation to its first human answer", RESPONSE_BOUNDS, 39, 22
)
HISTOGRAMS = (FIRST_DIAL, FIRST_ANSWER)


class Count(Struct, frozen=True):
    """Something that happens, counted in each rollup, and shown of each campaign and window."""

    column: str
    id: int
    title: str
    """What a person reads behind the number."""
    help: str
    unit: str = "calls"
    name: str = ""
    """What the API calls it, and its metric after `callfunnel_window_`; "": as the column."""
    event: str = ""
    """The type of which every event counts, where that is all."""

    @property
    def shown_as(self) -> str:
        return self.name or self.column


DM_HANGUPS = Count(
    "dm_hangups",
    15,
    "immediate hang-ups",
    "Decision makers of the window who hung up at once: to be taken off the reached events.",
)
AGENT_HANGUPS = Count(
    "agent_hangups",
    16,
    "ended by the agent at once",
    "Calls of the window that an agent ended at once; their reach stands.",
)
MACHINE_ANSWERS = Count(
    "machine_answers", 14, "machine answers", "Calls of the window that a machine answered."
)
IMPLIED = Count(
    "implied",
    17,
    "implied arrivals",
    "Arrivals of leads in the window that only a later stage gave away.",
    unit="arrivals",
    name="implied_arrivals",
)
COUNTS = (DM_HANGUPS, AGENT_HANGUPS, MACHINE_ANSWERS, IMPLIED)

EVENTS = tuple(f"events_{stage}" for stage in STAGES)
EVENTS_DISQUALIFIED = "events_disqualified"
EVENTS_LOST = "events_lost"
LEADS = tuple(f"leads_{stage}" for stage in STAGES)
AWAITED = "awaited"
UNCALLED = "uncalled"
DIALED_BEFORE_CREATION = "dialed_before_creation"

COLUMNS: Mapping[str, int] = (
    {
        name: id_
        for first_id, names in (
            (0, EVENTS),
            (6, LEADS),
            (12, (EVENTS_DISQUALIFIED, EVENTS_LOST)),
            (18, (AWAITED, UNCALLED, DIALED_BEFORE_CREATION)),
        )
        for id_, name in enumerate(names, first_id)
    }
    | {count.column: count.id for count in COUNTS}
    | {name: id_ for histogram in HISTOGRAMS for name, id_ in histogram.columns.items()}
)
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
} | {count.event: count.column for count in COUNTS if count.event}
"""The column that counts the events of a type; a machine's answer has its own."""

OF_SEGMENT = frozenset(
    (AWAITED, UNCALLED, DIALED_BEFORE_CREATION, *(name for each in HISTOGRAMS for name in each.columns))
)
"""The columns that only `SEGMENT` has: they belong to a lead, not to an agent or a place."""

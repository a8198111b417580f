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


class Figure(Struct, frozen=True):
    """A number that is shown: the sum of some columns, less others."""

    of: tuple[str, ...]
    less: tuple[str, ...] = ()

    def read(self, columns: Mapping[str, int]) -> int:
        return sum(columns.get(name, 0) for name in self.of) - sum(columns.get(name, 0) for name in self.less)


class Happening(Struct, frozen=True):
    """Events of a type, which count as they come: a column for all, and one for those that are taken back."""

    event: str
    """The type."""
    name: str
    id: int
    retracted_id: int
    title: str = ""
    """What a person reads behind the number. "": it is a stage's, or is not shown by itself."""
    voided: tuple[str, ...] = ()
    """Columns of those that turned out to be none."""

    @property
    def column(self) -> str:
        return f"events_{self.name}"

    @property
    def retracted(self) -> str:
        return f"retracted_{self.name}"

    @property
    def net(self) -> Figure:
        """Those that stand."""
        return Figure((self.column,), (self.retracted, *self.voided))


CONNECT_VOIDED, INBOUND_REACHED, REACH_REPEATED = "connect_voided", "inbound_reached", "reach_repeated"

OF_STAGES = tuple(
    Happening(event, stage, id_, id_ + 60, voided=(CONNECT_VOIDED,) if event == "connect" else ())
    for id_, (event, stage) in enumerate(
        zip(("lead_created", "dial", "connect", "dm_reached", "qualified", "won"), STAGES, strict=True)
    )
)
HAPPENINGS = (
    *OF_STAGES,
    Happening("disqualified", "disqualified", 12, 66),
    Happening("lost", "lost", 13, 67),
    Happening("lead_recycled", "recycled", 55, 68),
    Happening("appointment_set", "appointment", 56, 69, "appointments"),
    Happening("demo_held", "demo", 57, 70, "demos"),
    Happening("proposal_sent", "proposal", 58, 71, "proposals"),
    Happening("touch", "touch", 59, 72, "touches other than calls"),
)

MACHINE_ANSWERS, RETRACTED_MACHINE = "machine_answers", "retracted_machine"
DM_HANGUPS, AGENT_HANGUPS = "dm_hangups", "agent_hangups"
IMPLIED = "implied"
CORRECTIONS, CORRECTIONS_OPEN, CORRECTIONS_VOID = "corrections", "corrections_open", "corrections_void"
EVENTS = tuple(each.column for each in OF_STAGES)
LEADS = tuple(f"leads_{stage}" for stage in STAGES)
AWAITED, UNCALLED, DIALED_BEFORE_CREATION = "awaited", "uncalled", "dialed_before_creation"

COLUMNS: Mapping[str, int] = (
    {each.column: each.id for each in HAPPENINGS}
    | {each.retracted: each.retracted_id for each in HAPPENINGS}
    | {
        name: id_
        for first_id, names in (
            (6, LEADS),
            (14, (MACHINE_ANSWERS, DM_HANGUPS, AGENT_HANGUPS, IMPLIED)),
            (18, (AWAITED, UNCALLED, DIALED_BEFORE_CREATION)),
            (73, (RETRACTED_MACHINE, CORRECTIONS, CORRECTIONS_OPEN, CORRECTIONS_VOID)),
            (77, (CONNECT_VOIDED, INBOUND_REACHED, REACH_REPEATED)),
        )
        for id_, name in enumerate(names, first_id)
    }
    | {name: id_ for histogram in HISTOGRAMS for name, id_ in histogram.columns.items()}
)
"""The id of each column."""

ACTIVITY: Mapping[str, str] = {each.event: each.column for each in HAPPENINGS} | {"retracted": CORRECTIONS}
"""The column that counts the events of a type; a machine's answer has its own, an automated touch none."""

RETRACTED: Mapping[str, str] = {each.column: each.retracted for each in HAPPENINGS} | {
    MACHINE_ANSWERS: RETRACTED_MACHINE
}
"""Of a column that counts events, the one that counts those of them that are taken back."""


class Count(Struct, frozen=True):
    """A number that is shown of each campaign and window."""

    name: str
    """What the API calls it, and its metric after `callfunnel_window_`."""
    title: str
    """What a person reads behind the number."""
    help: str
    figure: Figure
    unit: str = "calls"


BESIDE_STAGES = tuple(each for each in HAPPENINGS if each.title)
"""The events of no stage that are shown."""

SHOWN = (*OF_STAGES, *BESIDE_STAGES)
"""The events that are shown by campaign, agent and place."""

COUNTS = (
    Count(
        "dm_hangups",
        "immediate hang-ups",
        "Decision makers of the window who hung up at once: to be taken off the reached events.",
        Figure((DM_HANGUPS,)),
    ),
    Count(
        "agent_hangups",
        "ended by the agent at once",
        "Calls of the window that an agent ended at once; their reach stands.",
        Figure((AGENT_HANGUPS,)),
    ),
    Count(
        "inbound_reached",
        "reached by calls from leads",
        "Decision makers of the window who called themselves: reached, and by no dial.",
        Figure((INBOUND_REACHED,)),
    ),
    Count(
        "reach_repeated",
        "reaches of a call that had one",
        "Reaches of the window in calls that had reached somebody before: a call counts once.",
        Figure((REACH_REPEATED,)),
    ),
    Count(
        "connects_voided",
        "answers that were a machine's after all",
        "Connects of the window in calls that a machine answered, as a later event says.",
        Figure((CONNECT_VOIDED,)),
    ),
    Count(
        "machine_answers",
        "machine answers",
        "Calls of the window that a machine answered.",
        Figure((MACHINE_ANSWERS,), (RETRACTED_MACHINE,)),
    ),
    Count(
        "implied_arrivals",
        "implied arrivals",
        "Arrivals of leads in the window that only a later stage gave away.",
        Figure((IMPLIED,)),
        unit="arrivals",
    ),
    Count(
        "retractions",
        "events taken back",
        "Events that occurred in the window and were taken back, of whatever type.",
        Figure(tuple(RETRACTED.values())),
        unit="events",
    ),
)

FIGURES: Mapping[str, Figure] = (
    {each.column: each.net for each in HAPPENINGS}
    | {name: Figure((name,)) for name in LEADS}
    | {count.name: count.figure for count in COUNTS}
)
"""What is shown, and what rates are made of, by name."""

OF_SEGMENT = frozenset(
    (AWAITED, UNCALLED, DIALED_BEFORE_CREATION, *(name for each in HISTOGRAMS for name in each.columns))
)
"""The columns that only `SEGMENT` has: they belong to a lead, not to an agent or a place."""

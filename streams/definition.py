"""What a lead adds to the tables, one small function for each paragraph of `streams/README.md`.

This is what the numbers mean. Of a whole file it makes the truth that everything else is held to
(`streams.oracle`); lead by lead it folds events where the core is not built (`streams.by_definition`). It is
written to be read; the core does the same fast and was written without a look at it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple

from callfunnel.schemas.events import NONE, STAGES, TYPES
from callfunnel.streams.log import KINDS, OWN, Entry, in_force
from callfunnel.streams.measures import (
    ACTIVITY,
    AGENT_HANGUPS,
    AWAITED,
    CORRECTIONS_OPEN,
    CORRECTIONS_VOID,
    DIALED_BEFORE_CREATION,
    DM_HANGUPS,
    FIRST_ANSWER,
    FIRST_DIAL,
    IMPLIED,
    LEADS,
    MACHINE_ANSWERS,
    PERSON,
    PLACE,
    RETRACTED,
    ROLLUPS,
    SEGMENT,
    UNCALLED,
    Histogram,
    Rollup,
)


class Addition(NamedTuple):
    """So much more in a column of every row whose pane holds the moment."""

    at_ms: int
    rollup: Rollup
    dimensions: tuple[str, ...]
    """The values of the rollup's dimensions."""
    column: str
    n: int = 1


Entries = Sequence[Entry]
"""In order."""

Retractions = list[tuple[Entry, Entries]]
"""Those in force, each with the entries that it takes back."""

Hangups = dict[int, str]
"""What counts the calls that ended at once, by call."""

CREATED, DIAL, CONNECT, DM_REACHED, QUALIFIED, WON, CALL_ENDED, DISQUALIFIED, LOST = (
    TYPES[name].rank
    for name in (
        *("lead_created", "dial", "connect", "dm_reached", "qualified", "won"),
        *("call_ended", "disqualified", "lost"),
    )
)
RETRACTION, APPOINTMENT_SET, TOUCH = (TYPES[name].rank for name in ("retracted", "appointment_set", "touch"))
VERDICTS = (QUALIFIED, DISQUALIFIED, WON, APPOINTMENT_SET)
CLOSING = (DISQUALIFIED, LOST, WON)
DIALED, CONNECTED = STAGES.index("dialed"), STAGES.index("connected")
NO_STAGE = -1

_OWN_PLACE = {
    (kind.rank, field.name): (place, field)
    for kind, fields in OWN.items()
    for place, field in enumerate(fields)
}
_STAGE = tuple(kind.stage for kind in KINDS)
_ACTIVITY = tuple(ACTIVITY.get(name) for name in TYPES)
_NAMES = tuple(TYPES)


def additions(log: Entries, hangup_ms: int) -> Iterator[Addition]:
    """Everything that a lead adds, from its log."""
    return chain(activity(log), facts(log, hangup_ms))


def facts(log: Entries, hangup_ms: int) -> Iterator[Addition]:
    """What follows from the events of a lead together, and changes when one more comes."""
    back = taken_back(log)
    live = live_of(log, back)
    ended_at_once = hangups(live, hangup_ms)
    arrived = arrivals(live, ended_at_once)
    return chain(
        corrections(log, live, back),
        voids(live, ended_at_once),
        progress(live, arrived),
        response(live, arrived),
    )


# Facts of an event


def own(entry: Entry, name: str) -> int | str | None:
    """A field that only its type has."""
    place, field = _OWN_PLACE[entry.rank, name]
    value = entry.own[place]
    return field.choices[value] if field.kind == "choice" and isinstance(value, int) else value


def is_machine(entry: Entry) -> bool:
    return entry.rank == CONNECT and own(entry, "answered_by") == "machine"


def column_of(entry: Entry) -> str | None:
    """The column that counts the event by itself."""
    if is_machine(entry):
        return MACHINE_ANSWERS
    return None if entry.rank == TOUCH and own(entry, "automated") else _ACTIVITY[entry.rank]


def of_event(entry: Entry, rollup: Rollup) -> tuple[str, ...]:
    """The event's own dimension values."""
    return tuple([getattr(entry, name) or NONE for name in rollup.dimensions])


# What is taken back


def taken_back(log: Entries) -> Retractions:
    """The retractions in force, each with what it takes back: all of an id, or the latest of a type."""
    held = in_force(log)
    retractions = [entry for entry in held if entry.rank == RETRACTION]
    by_id = [(each, of_id(log, each)) for each in retractions if own(each, "retracts") is not None]
    gone = {entry for _, entries in by_id for entry in entries}
    left = [entry for entry in held if entry not in gone]
    by_type: Retractions = []
    for each in retractions:
        if own(each, "retracts") is None:
            latest = [entry for entry in left if is_of(entry, each) and entry.at_ms <= each.at_ms][-1:]
            left = [entry for entry in left if entry not in latest]
            by_type.append((each, latest))
    return by_id + by_type


def of_id(log: Entries, retraction: Entry) -> Entries:
    """The entries of the id that a retraction names, and of the type, where it names one."""
    return [entry for entry in log if entry.mark == own(retraction, "retracts") and is_of(entry, retraction)]


def is_of(entry: Entry, retraction: Entry) -> bool:
    """Whether it is of the type that a retraction names; of any, where it names none."""
    return own(retraction, "retracts_type") in (None, _NAMES[entry.rank])


def live_of(log: Entries, retractions: Retractions) -> Entries:
    """The entries that facts look at: those in force that are no retractions and that none takes back."""
    gone = {entry for _, entries in retractions for entry in entries}
    return [entry for entry in in_force(log) if entry.rank != RETRACTION and entry not in gone]


# Facts of a lead


def first(live: Iterable[Entry], rank: int) -> Entry | None:
    return next((entry for entry in live if entry.rank == rank), None)


def of_lead(live: Entries, name: str) -> str:
    """The value of the earliest event that carries the dimension."""
    for entry in live:
        value: str | None = getattr(entry, name)
        if value is not None:
            return value
    return NONE


def calls(live: Entries) -> dict[int, Entries]:
    by_call = defaultdict[int, list[Entry]](list)
    for entry in live:
        if entry.call is not None:
            by_call[entry.call].append(entry)
    return dict(by_call)


def hangups(live: Entries, hangup_ms: int) -> Hangups:
    """The calls that ended at once: whose decision maker was reached, and gave nobody time for a verdict."""
    found = {}
    for call, entries in calls(live).items():
        reach, end = first(entries, DM_REACHED), first(entries, CALL_ENDED)
        if reach is None or end is None or any(entry.rank in VERDICTS for entry in entries):
            continue
        talk_ms = own(end, "talk_ms")
        ended_soon = 0 <= end.at_ms - reach.at_ms < hangup_ms
        talked_little = isinstance(talk_ms, int) and talk_ms < hangup_ms
        if ended_soon or talked_little:
            found[call] = AGENT_HANGUPS if own(end, "hangup_by") == "agent" else DM_HANGUPS
    return found


def is_void_reach(entry: Entry, ended_at_once: Hangups) -> bool:
    """Whether it was reached a decision maker who hung up at once: as good as not reached."""
    return entry.rank == DM_REACHED and entry.call is not None and ended_at_once.get(entry.call) is DM_HANGUPS


def stage_of(entry: Entry, ended_at_once: Hangups) -> int | None:
    """The stage at which the event itself arrives."""
    return None if is_machine(entry) or is_void_reach(entry, ended_at_once) else _STAGE[entry.rank]


def arrivals(live: Entries, ended_at_once: Hangups) -> list[tuple[Entry, bool]]:
    """For each stage that it got to, the event by which the lead arrived, and whether that is implied."""
    arrived: list[tuple[Entry, bool]] = []
    for entry in live:
        its_stage = stage_of(entry, ended_at_once)
        picked_up = CONNECTED if is_void_reach(entry, ended_at_once) else NO_STAGE
        got_to = picked_up if its_stage is None else its_stage
        arrived += [(entry, stage != its_stage) for stage in range(len(arrived), got_to + 1)]
    return arrived


def observed(
    histogram: Histogram, at_ms: int, segment: tuple[str, ...], duration_ms: int
) -> Iterator[Addition]:
    """A duration, in its bin and in the sum."""
    yield Addition(at_ms, SEGMENT, segment, histogram.bin_of(duration_ms))
    yield Addition(at_ms, SEGMENT, segment, histogram.sum, duration_ms)


# What is counted


def counted(entry: Entry, column: str | None) -> Iterator[Addition]:
    """An event, at its time and under its dimensions."""
    if column is not None:
        for rollup in ROLLUPS:
            yield Addition(entry.at_ms, rollup, of_event(entry, rollup), column)


def activity(log: Iterable[Entry]) -> Iterator[Addition]:
    """What happened when. Contradictory copies count each, and so does what is taken back: it only grows."""
    for entry in log:
        yield from counted(entry, column_of(entry))


def corrections(log: Entries, live: Entries, retractions: Retractions) -> Iterator[Addition]:
    """What of the activity is no longer in force, and the retractions that take nothing back."""
    held = set(live)
    for entry in log:
        if entry not in held:
            yield from counted(entry, RETRACTED.get(column_of(entry) or ""))
    for retraction, entries in retractions:
        if not entries:
            yield from counted(retraction, CORRECTIONS_OPEN)
        elif all(entry.rank == RETRACTION for entry in entries):
            yield from counted(retraction, CORRECTIONS_VOID)


def voids(live: Entries, ended_at_once: Hangups) -> Iterator[Addition]:
    """The calls that ended at once, at the moment and under the dimensions of their reach."""
    told = set[int]()
    for entry in live:
        if entry.rank == DM_REACHED and entry.call in ended_at_once and entry.call not in told:
            told.add(entry.call)
            yield from counted(entry, ended_at_once[entry.call])


def progress(live: Entries, arrived: Sequence[tuple[Entry, bool]]) -> Iterator[Addition]:
    """Who got how far: the lead once per stage, under its dimensions and the arriving event's agent."""
    segment = of_lead(live, "campaign"), of_lead(live, "source")
    place = (of_lead(live, "location"),)
    for (event, is_implied), column in zip(arrived, LEADS, strict=False):
        for rollup, values in ((SEGMENT, segment), (PERSON, of_event(event, PERSON)), (PLACE, place)):
            yield Addition(event.at_ms, rollup, values, column)
            if is_implied:
                yield Addition(event.at_ms, rollup, values, IMPLIED)


def response(live: Entries, arrived: Sequence[tuple[Entry, bool]]) -> Iterator[Addition]:
    """How fast a new lead is called, at the moment of its creation."""
    created, dial = first(live, CREATED), first(live, DIAL)
    connect = next((entry for entry in live if entry.rank == CONNECT and not is_machine(entry)), None)
    if created is None:
        return
    segment = of_lead(live, "campaign"), of_lead(live, "source")

    def count(column: str) -> Addition:
        return Addition(created.at_ms, SEGMENT, segment, column)

    if dial is not None and dial.at_ms < created.at_ms:
        yield count(DIALED_BEFORE_CREATION)
        return
    yield count(AWAITED)
    if dial is not None:
        yield from observed(FIRST_DIAL, created.at_ms, segment, dial.at_ms - created.at_ms)
    if connect is not None and connect.at_ms >= created.at_ms:
        yield from observed(FIRST_ANSWER, created.at_ms, segment, connect.at_ms - created.at_ms)
    is_closed = any(entry.rank in CLOSING for entry in live)
    if len(arrived) <= DIALED and not is_closed:
        yield count(UNCALLED)

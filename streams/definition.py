"""What a lead adds to the tables, one small function for each paragraph of `streams/README.md`.

This is what the numbers mean. Of a whole file it makes the truth that everything else is held to
(`streams.oracle`); lead by lead it folds events where the core is not built (`streams.by_definition`). It is
written to be read; the core does the same fast and was written without a look at it.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from itertools import chain
from typing import NamedTuple

from callfunnel.schemas.events import NONE, STAGES, TYPES
from callfunnel.streams.log import KINDS, OWN, Entry, in_force
from callfunnel.streams.measures import (
    ACTIVITY,
    AGENT_HANGUPS,
    AWAITED,
    CONNECT_VOIDED,
    CORRECTIONS_OPEN,
    CORRECTIONS_VOID,
    DIALED_BEFORE_CREATION,
    DM_HANGUPS,
    FIRST_ANSWER,
    FIRST_DIAL,
    IMPLIED,
    INBOUND_REACHED,
    LEADS,
    MACHINE_ANSWERS,
    PERSON,
    PLACE,
    REACH_REPEATED,
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


class Unit(NamedTuple):
    """What is counted in the funnel: a cycle of a lead that has events."""

    entries: Entries
    """In order; the `lead_recycled` that opens it is the first."""
    segment: tuple[str, str]
    """Campaign and source."""
    location: str
    is_closed: bool

    @property
    def is_recycled(self) -> bool:
        """Whether a `lead_recycled` opens it."""
        return self.entries[0].rank == RECYCLED


class Judged(NamedTuple):
    """What only a call as a whole says."""

    calls: Mapping[int, Entries]
    hangups: Mapping[int, str]
    """What counts the calls that ended at once, by call."""
    voided: Set[Entry]
    """The connects that were a machine's after all."""


CREATED, DIAL, CONNECT, DM_REACHED, QUALIFIED, WON, CALL_ENDED, DISQUALIFIED, LOST = (
    TYPES[name].rank
    for name in (
        *("lead_created", "dial", "connect", "dm_reached", "qualified", "won"),
        *("call_ended", "disqualified", "lost"),
    )
)
RECYCLED, RETRACTION, APPOINTMENT_SET, TOUCH, ADJUSTED = (
    TYPES[name].rank
    for name in ("lead_recycled", "retracted", "appointment_set", "touch", "revenue_adjusted")
)
VERDICTS = (QUALIFIED, DISQUALIFIED, WON, APPOINTMENT_SET)
OUTCOMES = (QUALIFIED, DISQUALIFIED, LOST)
STAY = (WON, DISQUALIFIED, LOST, CALL_ENDED)
"""Of the millisecond of a `lead_recycled`, what belongs to the cycle before."""
ENTERED, DIALED, CONNECTED = (STAGES.index(stage) for stage in ("created", "dialed", "connected"))
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
    held = in_force(log)
    back = taken_back(log, held)
    live = live_of(held, back)
    judged = judge(live, hangup_ms)
    of_units = (of_unit(unit, judged) for unit in units(live))
    return chain(corrections(log, live, back), of_calls(live, judged), chain.from_iterable(of_units))


def of_unit(unit: Unit, judged: Judged) -> Iterator[Addition]:
    arrived = arrivals(unit, judged)
    return chain(progress(unit, arrived), response(unit, arrived, judged))


# Facts of an event


def own(entry: Entry, name: str) -> int | str | None:
    """A field that only its type has."""
    place, field = _OWN_PLACE[entry.rank, name]
    value = entry.own[place]
    return field.choices[value] if field.kind == "choice" and isinstance(value, int) else value


def is_machine(entry: Entry) -> bool:
    return entry.rank == CONNECT and own(entry, "answered_by") == "machine"


def is_human(entry: Entry) -> bool:
    return entry.rank == CONNECT and not is_machine(entry)


def column_of(entry: Entry) -> str | None:
    """The column that counts the event by itself."""
    if is_machine(entry):
        return MACHINE_ANSWERS
    return None if entry.rank == TOUCH and own(entry, "automated") else _ACTIVITY[entry.rank]


def of_event(entry: Entry, rollup: Rollup) -> tuple[str, ...]:
    """The event's own dimension values."""
    return tuple([getattr(entry, name) or NONE for name in rollup.dimensions])


# What is taken back


def taken_back(log: Entries, held: Entries) -> Retractions:
    """The retractions in force, each with what it takes back: all of an id, or the latest of a type.

    `held` are the entries in force.
    """
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


def live_of(held: Entries, retractions: Retractions) -> Entries:
    """The entries that facts look at: those in force that are no retractions and that none takes back."""
    gone = {entry for _, entries in retractions for entry in entries}
    return [entry for entry in held if entry.rank != RETRACTION and entry not in gone]


# Facts of a lead


def first(live: Iterable[Entry], rank: int) -> Entry | None:
    return next((entry for entry in live if entry.rank == rank), None)


def in_cycles(live: Entries) -> Entries:
    """In the order in which cycles take them; sums of money that are corrected belong to none."""
    moments = {entry.at_ms for entry in live if entry.rank == RECYCLED}

    def place(entry: Entry) -> tuple[int, int]:
        if entry.at_ms not in moments or entry.rank in STAY:
            return entry.at_ms, 0
        return entry.at_ms, 1 if entry.rank == RECYCLED else 2

    return sorted((entry for entry in live if entry.rank != ADJUSTED), key=place)


def units(live: Entries) -> list[Unit]:
    """One for each cycle, in order."""
    cycles: list[list[Entry]] = []
    campaign = NONE
    for entry in in_cycles(live):
        if not cycles or opens(entry, cycles[-1], campaign):
            cycles.append([])
            earlier = campaign
        cycles[-1].append(entry)
        campaign = carried(cycles[-1], "campaign", earlier)
    found: list[Unit] = []
    campaign = source = location = NONE
    for cycle in cycles:
        campaign = carried(cycle, "campaign", campaign)
        source = carried(cycle, "source", source)
        location = carried(cycle, "location", location)
        is_last = cycle is cycles[-1]
        found.append(Unit(cycle, (campaign, source), location, is_closed(cycle) or not is_last))
    return found


def opens(entry: Entry, cycle: Entries, campaign: str) -> bool:
    """Whether it opens a new cycle after what this one, of the campaign, holds so far."""
    if entry.rank == RECYCLED:
        return (entry.rank, entry.at_ms) != (cycle[0].rank, cycle[0].at_ms)
    is_of_another = entry.campaign is not None and campaign not in (NONE, entry.campaign)
    is_anew = entry.rank == CREATED or (entry.rank == DIAL and is_of_another)
    return is_anew and is_closed(cycle)


def is_closed(cycle: Entries) -> bool:
    """Whether it is won, or given up after it was last qualified."""
    last = [entry.rank for entry in cycle if entry.rank in OUTCOMES][-1:]
    return first(cycle, WON) is not None or last not in ([], [QUALIFIED])


def carried(cycle: Entries, name: str, earlier: str) -> str:
    """The value of the earliest event that carries the dimension, or that of the cycle before."""
    for entry in cycle:
        value: str | None = getattr(entry, name)
        if value is not None:
            return value
    return earlier


def calls(live: Entries) -> dict[int, Entries]:
    by_call = defaultdict[int, list[Entry]](list)
    for entry in live:
        if entry.call is not None:
            by_call[entry.call].append(entry)
    return dict(by_call)


def judge(live: Entries, hangup_ms: int) -> Judged:
    of_each = calls(live)
    return Judged(
        of_each,
        {call: found for call, entries in of_each.items() if (found := hangup(entries, hangup_ms))},
        {entry for entries in of_each.values() for entry in voided(entries)},
    )


def hangup(call: Entries, hangup_ms: int) -> str | None:
    """What counts a call that ended at once: that reached somebody, and gave nobody time for a verdict."""
    reach, answer = first(call, DM_REACHED), first(filter(is_human, call), CONNECT)
    ends = [entry for entry in call if entry.rank == CALL_ENDED]
    if reach is None or not ends or any(entry.rank in VERDICTS for entry in call):
        return None
    end, talks = ends[-1], [talk_ms for each in ends if isinstance(talk_ms := own(each, "talk_ms"), int)]
    ended_soon = 0 <= end.at_ms - reach.at_ms < hangup_ms
    talked_little = bool(talks) and max(talks) < hangup_ms
    # The reach was noted after the call: then the answer says how long it was.
    was_short = (
        end.at_ms < reach.at_ms
        and not talks
        and answer is not None
        and 0 <= end.at_ms - answer.at_ms < hangup_ms
    )
    if ended_soon or talked_little or was_short:
        return AGENT_HANGUPS if own(end, "hangup_by") == "agent" else DM_HANGUPS
    return None


def voided(call: Entries) -> Entries:
    """The connects of a call that a machine answered, as it turned out: one says so, and none was reached."""
    if first(call, DM_REACHED) is not None or not any(map(is_machine, call)):
        return []
    return [entry for entry in call if entry.rank == CONNECT and own(entry, "answered_by") is None]


def is_inbound(call: Entries) -> bool:
    """Whether the lead called: nobody dialed, and the first answer is to a call from outside."""
    answer = first(call, CONNECT)
    return first(call, DIAL) is None and answer is not None and own(answer, "direction") == "inbound"


def is_void_reach(entry: Entry, judged: Judged) -> bool:
    """Whether it was reached a decision maker who hung up at once: as good as not reached."""
    return (
        entry.rank == DM_REACHED and entry.call is not None and judged.hangups.get(entry.call) == DM_HANGUPS
    )


def stage_of(entry: Entry, unit: Unit, judged: Judged) -> int | None:
    """The stage at which the event itself arrives."""
    if entry.rank == RECYCLED:
        return ENTERED if entry is unit.entries[0] else None
    is_none = is_machine(entry) or entry in judged.voided or is_void_reach(entry, judged)
    return None if is_none else _STAGE[entry.rank]


def arrivals(unit: Unit, judged: Judged) -> list[tuple[Entry, bool]]:
    """For each stage that it got to, the event by which the unit arrived, and whether that is implied."""
    arrived: list[tuple[Entry, bool]] = []
    for entry in unit.entries:
        its_stage = stage_of(entry, unit, judged)
        picked_up = CONNECTED if is_void_reach(entry, judged) else NO_STAGE
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


def of_calls(live: Entries, judged: Judged) -> Iterator[Addition]:
    """What of connects and reaches is not to be counted, at the moment and under the dimensions of each."""
    for entry in live:
        if entry in judged.voided:
            yield from counted(entry, CONNECT_VOIDED)
    for call, entries in judged.calls.items():
        reaches = [entry for entry in entries if entry.rank == DM_REACHED]
        for reach in reaches[:1]:
            yield from counted(reach, judged.hangups.get(call))
            if is_inbound(entries) and judged.hangups.get(call) != DM_HANGUPS:
                yield from counted(reach, INBOUND_REACHED)
        for reach in reaches[1:]:
            yield from counted(reach, REACH_REPEATED)


def progress(unit: Unit, arrived: Sequence[tuple[Entry, bool]]) -> Iterator[Addition]:
    """Who got how far: the unit once per stage, under its dimensions and the arriving event's agent."""
    for (event, is_implied), column in zip(arrived, LEADS, strict=False):
        of_agent, place = of_event(event, PERSON), (unit.location,)
        for rollup, values in ((SEGMENT, unit.segment), (PERSON, of_agent), (PLACE, place)):
            yield Addition(event.at_ms, rollup, values, column)
            if is_implied:
                yield Addition(event.at_ms, rollup, values, IMPLIED)


def response(unit: Unit, arrived: Sequence[tuple[Entry, bool]], judged: Judged) -> Iterator[Addition]:
    """How fast a new lead is called, at the moment of its creation."""
    created = unit.entries[0] if unit.is_recycled else first(unit.entries, CREATED)
    dial, segment = first(unit.entries, DIAL), unit.segment
    answers = (entry for entry in unit.entries if is_human(entry) and entry not in judged.voided)
    connect = next(answers, None)
    if created is None:
        return

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
    if len(arrived) <= DIALED and not unit.is_closed:
        yield count(UNCALLED)

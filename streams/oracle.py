"""The definitions of `streams/README.md` as slow, obvious code: the truth the fast fold is held to.

One function per paragraph, every number computed from the set of all events at once. It shares nothing with
the fold but the event types, so a mistake would have to be made twice to go unseen.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

from callfunnel.schemas.events import (
    NONE,
    STAGES,
    CallEnded,
    Connect,
    Dial,
    Disqualified,
    DmReached,
    Event,
    LeadCreated,
    Lost,
    Qualified,
    Won,
)

RowKey = tuple[str, int, str, *tuple[str, ...]]
"""`(resolution, pane, rollup, dimension values…)`; the pane in Unix seconds."""

Tables = dict[RowKey, dict[str, int]]
"""The columns of each row; none is 0."""

Lead = list[Event]
"""The events of one lead by rank, each once."""

COARSEST_FIRST = ("all", "1d", "1h", "1m")
LENGTH_SECONDS = {"1m": 60, "1h": 3_600, "1d": 86_400}
BOUNDS_SECONDS = (5, 15, 30, 60, 120, 180, 240, 300, 600, 900, 1_800, 3_600, 14_400, 28_800, 86_400)


class Count(NamedTuple):
    """An addition to a column of every row whose pane holds the moment."""

    at_ms: int
    rollup: str
    dimensions: tuple[str, ...]
    column: str
    n: int = 1


def tables(
    events: Iterable[Event],
    *,
    hangup_ms: int = 15_000,
    timezone: str = "UTC",
    minute_hours: float = 6,
    hour_days: float = 3,
    day_days: float = 400,
) -> Tables:
    """The rows of one source partition, from its accepted events in any order and with any duplicates."""
    accepted = without_duplicates(events)
    watermark_ms = max((event.at_ms for event in accepted), default=0)
    kept_seconds = {"1m": minute_hours * 3_600, "1h": hour_days * 86_400, "1d": day_days * 86_400}
    zone = ZoneInfo(timezone)
    rows: defaultdict[RowKey, Counter[str]] = defaultdict(Counter)
    for lead in leads(accepted):
        hangups = hangup_of_calls(lead, hangup_ms)
        for count in (*activity(lead, hangups), *progress(lead, hangups), *response(lead, hangups)):
            for resolution, pane in panes(count.at_ms, zone):
                rows[resolution, pane, count.rollup, *count.dimensions][count.column] += count.n
    return {
        key: {column: n for column, n in columns.items() if n}
        for key, columns in rows.items()
        if is_kept(key, kept_seconds, watermark_ms)
    }


# One partition, one fold


def without_duplicates(events: Iterable[Event]) -> list[Event]:
    seen: dict[tuple[str, str], Event] = {}
    for event in events:
        seen.setdefault((event.lead_id, event.event_id), event)
    return list(seen.values())


def rank(event: Event) -> tuple[int, int, str]:
    return event.at_ms, event.rank, event.event_id


def leads(events: Iterable[Event]) -> list[Lead]:
    by_lead: defaultdict[str, Lead] = defaultdict(list)
    for event in events:
        by_lead[event.lead_id].append(event)
    return [sorted(lead, key=rank) for lead in by_lead.values()]


E = TypeVar("E")


def first(lead: Lead, kind: type[E]) -> E | None:
    return next((event for event in lead if isinstance(event, kind)), None)


# Facts of a lead


def dimension(lead: Lead, name: str) -> str:
    """The value on the earliest event that carries it. Of a single event: its own value."""
    return next((getattr(event, name) for event in lead if getattr(event, name) is not None), NONE)


def is_machine(event: Event) -> bool:
    return isinstance(event, Connect) and event.answered_by == "machine"


def calls(lead: Lead) -> dict[str, Lead]:
    by_call: defaultdict[str, Lead] = defaultdict(list)
    for event in lead:
        if event.call_id is not None:
            by_call[event.call_id].append(event)
    return by_call


def hangup_of_calls(lead: Lead, hangup_ms: int) -> dict[str, str]:
    """Of the calls that ended at once, by call id: "immediate" or "agent"."""
    hangups = {}
    for call_id, call in calls(lead).items():
        reach, end = first(call, DmReached), first(call, CallEnded)
        has_verdict = any(isinstance(event, Qualified | Disqualified | Won) for event in call)
        if reach is None or end is None or has_verdict:
            continue
        ended_soon = 0 <= end.at_ms - reach.at_ms < hangup_ms
        talked_little = end.talk_seconds is not None and end.talk_seconds * 1000 < hangup_ms
        if ended_soon or talked_little:
            hangups[call_id] = "agent" if end.hangup_by == "agent" else "immediate"
    return hangups


def is_void_reach(event: Event, hangups: Mapping[str, str]) -> bool:
    return (
        isinstance(event, DmReached)
        and event.call_id is not None
        and hangups.get(event.call_id) == "immediate"
    )


def stage_of(event: Event, hangups: Mapping[str, str]) -> int | None:
    """The stage at which the event itself arrives."""
    return None if is_machine(event) or is_void_reach(event, hangups) else event.stage


def arrival(lead: Lead, stage: int, hangups: Mapping[str, str]) -> tuple[Event, bool] | None:
    """The event by which the lead arrives at the stage, and whether that is only implied."""
    for event in lead:
        own = stage_of(event, hangups)
        picked_up = is_void_reach(event, hangups) and stage <= STAGES.index("connected")
        if picked_up or (own is not None and own >= stage):
            return event, own != stage
    return None


def is_closed(lead: Lead) -> bool:
    return any(isinstance(event, Disqualified | Lost | Won) for event in lead)


# Rows


@lru_cache(10_000)
def panes(at_ms: int, zone: ZoneInfo) -> tuple[tuple[str, int], ...]:
    at = at_ms // 1000
    day = datetime.fromtimestamp(at, zone).date()
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return ("1m", at // 60 * 60), ("1h", at // 3_600 * 3_600), ("1d", int(midnight.timestamp())), ("all", 0)


def is_kept(key: RowKey, kept_seconds: Mapping[str, float], watermark_ms: int) -> bool:
    resolution, pane, rollup, *_ = key
    if resolution == "all":
        return rollup == "campaign+source"
    return (pane + LENGTH_SECONDS[resolution] + kept_seconds[resolution]) * 1000 > watermark_ms


def activity(lead: Lead, hangups: Mapping[str, str]) -> Iterator[Count]:
    """What happened when, under the dimensions of the events."""

    def count(event: Event, column: str) -> Iterator[Count]:
        for rollup in ("campaign+source", "team+agent", "location"):
            own = tuple(dimension([event], name) for name in rollup.split("+"))
            yield Count(event.at_ms, rollup, own, column)

    for event in lead:
        if is_machine(event):
            yield from count(event, "machine_answers")
        elif isinstance(event, Disqualified):
            yield from count(event, "events_disqualified")
        elif isinstance(event, Lost):
            yield from count(event, "events_lost")
        elif event.stage is not None:
            yield from count(event, f"events_{STAGES[event.stage]}")
    for call_id, call in calls(lead).items():
        reach = first(call, DmReached)
        if reach is not None and call_id in hangups:
            yield from count(reach, "agent_hangups" if hangups[call_id] == "agent" else "dm_hangups")


def progress(lead: Lead, hangups: Mapping[str, str]) -> Iterator[Count]:
    """Who got how far: the lead once per stage, under its dimensions and the arriving event's agent."""
    for stage, name in enumerate(STAGES):
        arrived = arrival(lead, stage, hangups)
        if arrived is None:
            continue
        event, implied = arrived
        for rollup, dimensions in (
            ("campaign+source", (dimension(lead, "campaign"), dimension(lead, "source"))),
            ("team+agent", (dimension([event], "team"), dimension([event], "agent"))),
            ("location", (dimension(lead, "location"),)),
        ):
            yield Count(event.at_ms, rollup, dimensions, f"leads_{name}")
            yield Count(event.at_ms, rollup, dimensions, "implied", int(implied))


def response(lead: Lead, hangups: Mapping[str, str]) -> Iterator[Count]:
    """How fast a new lead is called, at the moment of its creation."""
    created, dial = first(lead, LeadCreated), first(lead, Dial)
    connect = first([event for event in lead if not is_machine(event)], Connect)
    if created is None:
        return

    def count(column: str, n: int = 1) -> Count:
        dimensions = (dimension(lead, "campaign"), dimension(lead, "source"))
        return Count(created.at_ms, "campaign+source", dimensions, column, n)

    if dial is not None and dial.at_ms < created.at_ms:
        yield count("dialed_before_creation")
        return
    yield count("awaited")
    if dial is not None:
        duration_ms = dial.at_ms - created.at_ms
        yield count(f"attempt_{bin_of(duration_ms)}")
        yield count("attempt_ms", duration_ms)
    if connect is not None and connect.at_ms >= created.at_ms:
        duration_ms = connect.at_ms - created.at_ms
        yield count(f"connect_{bin_of(duration_ms)}")
        yield count("connect_ms", duration_ms)
    if arrival(lead, STAGES.index("dialed"), hangups) is None and not is_closed(lead):
        yield count("uncalled")


def bin_of(duration_ms: int) -> str:
    return next((str(bound) for bound in BOUNDS_SECONDS if duration_ms <= bound * 1000), "inf")


# Several partitions, and the comparison


def partitioned(
    events: Iterable[Event], partition_of: Callable[[str], int], **settings: Any
) -> dict[int, Tables]:
    """The tables of every partition that has events: `partition_of` gets a lead's id."""
    by_partition: defaultdict[int, list[Event]] = defaultdict(list)
    for event in events:
        by_partition[partition_of(event.lead_id)].append(event)
    return {partition: tables(part, **settings) for partition, part in sorted(by_partition.items())}


def total(by_partition: Mapping[int, Tables]) -> Tables:
    """The rows summed over the partitions: the numbers that are shown."""
    rows: defaultdict[RowKey, Counter[str]] = defaultdict(Counter)
    for part in by_partition.values():
        for key, columns in part.items():
            rows[key].update(columns)
    return {key: dict(columns) for key, columns in rows.items()}


def cells(expected: Tables, actual: Tables) -> Iterator[tuple[RowKey, str, int, int]]:
    """`(row, column, expected, actual)` of each cell that either side holds, coarse rows first."""
    for key in sorted({*expected, *actual}, key=lambda key: (COARSEST_FIRST.index(key[0]), key)):
        want, got = expected.get(key, {}), actual.get(key, {})
        for column in sorted({*want, *got}):
            yield key, column, want.get(column, 0), got.get(column, 0)


def differences(expected: Tables, actual: Tables) -> list[str]:
    """One line per cell that differs, in a stable order; empty when both say the same."""
    return [
        f"{describe(key)} {column}: expected {want}, got {got}"
        for key, column, want, got in cells(expected, actual)
        if want != got
    ]


def describe(key: RowKey) -> str:
    resolution, pane, rollup, *dimensions = key
    moment = "" if resolution == "all" else f" {datetime.fromtimestamp(pane, UTC):%Y-%m-%dT%H:%MZ}"
    return f"{resolution}{moment} {rollup} {','.join(dimensions)}"


def lost_and_doubled(expected: Tables, actual: Tables) -> tuple[int, int]:
    """How much is missing and how much is too much, summed over all cells."""
    gaps = [want - got for _, _, want, got in cells(expected, actual)]
    return sum(gap for gap in gaps if gap > 0), sum(-gap for gap in gaps if gap < 0)


def stage_summary(rows: Tables) -> dict[str, dict[str, int]]:
    """The events and the leads of each stage, over all time."""
    ever = [columns for key, columns in rows.items() if key[0] == "all" and key[2] == "campaign+source"]

    def over_all_time(column: str) -> int:
        return sum(columns.get(column, 0) for columns in ever)

    return {
        stage: {"events": over_all_time(f"events_{stage}"), "leads": over_all_time(f"leads_{stage}")}
        for stage in STAGES
    }

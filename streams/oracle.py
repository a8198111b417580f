"""The definition run over a whole file: the tables of a source partition, from all of its events at once.

It is the truth that folds are held to, in the demo, the fault runs and the tests. It knows nothing of
batches, offsets or restarts, so what those could do to a number shows.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zoneinfo import ZoneInfo

from msgspec.structs import replace

from callfunnel.schemas.events import STAGES, Event
from callfunnel.streams.definition import additions
from callfunnel.streams.log import Entry, entry_of, joined
from callfunnel.streams.measures import SEGMENT

RowKey = tuple[str, int, str, *tuple[str, ...]]
"""`(resolution, pane, rollup, dimension values…)`; the pane in Unix seconds."""

Tables = dict[RowKey, dict[str, int]]
"""The columns of each row; none is 0."""

COARSEST_FIRST = ("all", "1d", "1h", "1m")
LENGTH_SECONDS = {"1m": 60, "1h": 3_600, "1d": 86_400}


def tables(events: Iterable[Event], **settings: Any) -> Tables:
    """The rows of one source partition, from its accepted events in any order and with any duplicates."""
    logs = defaultdict[str, set[Entry]](set)
    for event in events:
        logs[event.lead_id].add(entry_of(event))
    return tables_of(logs.values(), **settings)


def tables_of(
    logs: Collection[Collection[Entry]],
    *,
    hangup_ms: int = 15_000,
    timezone: str = "UTC",
    minute_hours: float = 6,
    minute_hours_of_people: float = 2,
    hour_days: float = 3,
    day_days: float = 400,
) -> Tables:
    """The rows of one source partition, from the logs of its leads.

    Rows of minutes of agents and places are kept for `minute_hours_of_people` at most.
    """
    watermark_ms = max((entry.at_ms for log in logs for entry in log), default=0)
    kept_seconds = {"1m": minute_hours * 3_600, "1h": hour_days * 86_400, "1d": day_days * 86_400}
    kept_of_people = kept_seconds | {"1m": min(minute_hours, minute_hours_of_people) * 3_600}
    zone = ZoneInfo(timezone)
    rows: defaultdict[RowKey, Counter[str]] = defaultdict(Counter)
    for log in logs:
        for at_ms, rollup, dimensions, column, n in additions(joined((), log), hangup_ms):
            for resolution, pane in panes(at_ms, zone):
                rows[resolution, pane, rollup.name, *dimensions][column] += n
    return {
        key: {column: n for column, n in columns.items() if n}
        for key, columns in rows.items()
        if is_kept(key, kept_seconds if key[2] == SEGMENT.name else kept_of_people, watermark_ms)
    }


@lru_cache(10_000)
def panes(at_ms: int, zone: ZoneInfo) -> tuple[tuple[str, int], ...]:
    at = at_ms // 1000
    day = datetime.fromtimestamp(at, zone).date()
    midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
    return ("1m", at // 60 * 60), ("1h", at // 3_600 * 3_600), ("1d", int(midnight.timestamp())), ("all", 0)


def is_kept(key: RowKey, kept_seconds: Mapping[str, float], watermark_ms: int) -> bool:
    resolution, pane, rollup, *_ = key
    if resolution == "all":
        return rollup == SEGMENT.name
    return (pane + LENGTH_SECONDS[resolution] + kept_seconds[resolution]) * 1000 > watermark_ms


def as_they_count(events: Iterable[Event], *, kept_days: float, timezone: str = "UTC") -> Iterator[Event]:
    """The events of one partition that count, in their order of arrival, where it knows them for so long.

    What happened on a day that is archived does not count any more. A lead of which nothing happened since is
    archived, too: it comes back as another lead, under another name here.
    """
    zone, gone_after = ZoneInfo(timezone), timedelta(days=kept_days + 1)
    horizon_ms, watermark_ms = 0, -1
    newest_ms: dict[str, int] = {}
    lives = Counter[str]()
    for event in events:
        lead, at_ms = event.lead_id, event.at_ms
        if at_ms < horizon_ms:
            continue
        if newest_ms.get(lead, at_ms) < horizon_ms:
            lives[lead] += 1
            del newest_ms[lead]
        newest_ms[lead] = max(newest_ms.get(lead, at_ms), at_ms)
        watermark_ms = max(watermark_ms, at_ms)
        gone = datetime.fromtimestamp(watermark_ms // 1000, UTC) - gone_after
        if gone.year >= 1970:
            day = gone.astimezone(zone).date() + timedelta(days=1)
            midnight = datetime(day.year, day.month, day.day, tzinfo=zone)
            horizon_ms = max(horizon_ms, int(midnight.timestamp()) * 1000)
        yield replace(event, lead_id=f"{lead}\n{lives[lead]}") if lives[lead] else event


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

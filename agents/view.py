"""The funnel as it is now: the newest rows of the changelog, summed over its partitions.

The law: a snapshot is never a partial sum. Every partition stands at the end of a batch, which its position
row closes, and there is none before every partition has reached the end that its log had at the start.
Nothing here depends on which worker wrote a row, so nothing moves when partitions do.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import tzinfo
from functools import partial
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from agents.config import Settings
from agents.connection import aiokafka_options
from agents.microbatch import fetch
from agents.read_committed import repair
from agents.threads import LoopThread
from schemas.rows import POSITION_KEY, Columns, Position, decode_columns, decode_key, decode_position
from schemas.topics import funnel_changelog
from streams.columns import ATTEMPT_BINS, RESPONSE_BOUNDS_SECONDS
from streams.windows import (
    DUE_SECONDS,
    WINDOWS,
    Dimensions,
    Uncalled,
    due_panes,
    seen,
    total,
    uncalled,
    window_panes,
)

SEGMENT = "campaign+source"
PERSON = "team+agent"
LOCATION = "location"
ROLLUPS = (SEGMENT, PERSON, LOCATION)

_MET = ATTEMPT_BINS[: RESPONSE_BOUNDS_SECONDS.index(DUE_SECONDS) + 1]
_LOOK_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_RECORDS_AT_ONCE = 10_000
_SNAPSHOT_SPACING = 5
"""The next snapshot begins after so many times what the last one took: a fifth of the view's time at most."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The funnel at a moment. Nobody changes it any more, so any thread may read it."""

    now_s: int
    watermarks_ms: Mapping[int, int]
    offsets: Mapping[int, int]
    """Partition: the next source offset, everything before which is in the numbers."""
    windows: Mapping[str, Mapping[str, Mapping[Dimensions, Columns]]]
    """Window or `all`, rollup, dimension values, columns; `all` has only the rollup `campaign+source`."""
    due: Mapping[str, Mapping[Dimensions, tuple[int, int]]]
    """Window or `all`, campaign and source: leads due, leads met."""
    uncalled: Mapping[Dimensions, Uncalled]
    seen: Mapping[str, set[Dimensions]]
    """Rollup: dimension values that were seen in the last 48 hours."""
    rows: int
    poisoned: Mapping[int, float]
    """Poisoned partitions, and which share of their newest records was rejected."""


Changes = dict[bytes | None, bytes | None]
"""The newest value of each row that changed, by its key; `None` deletes it."""


class _StartOverError(Exception):
    """What was read is not the past of the log any more: somebody made it anew."""


class Funnel:
    """The rows of all partitions and their sum, kept as rows come."""

    def __init__(self, zone: tzinfo, days_kept: int = 400) -> None:
        self._zone = zone
        self._days_kept_s = days_kept * 86_400
        self._held: dict[int, dict[bytes, bytes]] = {}
        self._tables: dict[str, dict[str, dict[int, dict[Dimensions, Columns]]]] = {}
        self.positions: dict[int, Position] = {}

    def apply(self, partition: int, key: bytes, value: bytes | None) -> None:
        """Take the newest value of a partition's row; `None` deletes it. Raises `msgspec.DecodeError`."""
        if key == POSITION_KEY:
            if value is not None:
                self._advance(partition, decode_position(value))
            return
        held = self._held.setdefault(partition, {})
        old = held.get(key)
        if old == value:
            return
        resolution, pane, rollup, *dimensions = decode_key(key)
        row = tuple(dimensions)
        rows = self._tables.setdefault(rollup, {}).setdefault(resolution, {}).setdefault(pane, {})
        sums = rows.setdefault(row, {})
        for column, n in decode_columns(value).items() if value is not None else ():
            sums[column] = sums.get(column, 0) + n
        for column, n in decode_columns(old).items() if old is not None else ():
            sums[column] -= n
            if not sums[column]:
                del sums[column]
        if value is None:
            del held[key]
        else:
            held[key] = value
        if not sums:
            del rows[row]
            if not rows:
                del self._tables[rollup][resolution][pane]

    def _advance(self, partition: int, position: Position) -> None:
        before = self.positions.get(partition)
        if before is not None and position.offset < before.offset:
            raise _StartOverError(
                f"partition {partition} went back from offset {before.offset} to {position.offset}"
            )
        self.positions[partition] = position

    @property
    def newest_ms(self) -> int:
        """The newest watermark, 0 before the first event."""
        return max((position.watermark_ms for position in self.positions.values()), default=0)

    def snapshot(self, now_s: int) -> Snapshot:
        """The funnel with its windows ending at `now_s`."""
        tables = {rollup: self._tables.get(rollup, {}) for rollup in ROLLUPS}
        segments = tables[SEGMENT]
        windows = {
            window: {
                rollup: total(table, window_panes(window, now_s, self._zone))
                for rollup, table in tables.items()
            }
            for window in WINDOWS
        }
        windows["all"] = {SEGMENT: total(segments, window_panes("all", now_s, self._zone))}
        return Snapshot(
            now_s=now_s,
            watermarks_ms={
                partition: position.watermark_ms for partition, position in self.positions.items()
            },
            offsets={partition: position.offset for partition, position in self.positions.items()},
            windows=windows,
            due={window: self._due(window, now_s) for window in windows},
            uncalled=uncalled(segments, now_s, self._days_kept_s),
            seen={rollup: seen(table, now_s) for rollup, table in tables.items()},
            rows=sum(map(len, self._held.values())),
            poisoned={
                partition: position.rejected_share
                for partition, position in self.positions.items()
                if position.poison != "none"
            },
        )

    def _due(self, window: str, now_s: int) -> dict[Dimensions, tuple[int, int]]:
        table = self._tables.get(SEGMENT, {})
        created, not_due = (total(table, panes) for panes in due_panes(window, now_s, self._zone))
        result = {}
        for row, columns in created.items():
            without = not_due.get(row, {})
            due = columns.get("awaited", 0) - without.get("awaited", 0)
            met = sum(columns.get(column, 0) - without.get(column, 0) for column in _MET)
            result[row] = (due, met)
        return result


class View:
    """Tails the changelog of the funnel table in its own thread and keeps `snapshot` fresh.

    `connection` holds the keyword arguments that any aiokafka client of this broker needs.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        topic: str,
        *,
        zone: tzinfo,
        days_kept: int = 400,
        clock: Literal["wall", "event"] = "wall",
        refresh_seconds: float = 0.2,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._connection = dict(connection)
        self._topic = topic
        self._new_funnel = partial(Funnel, zone, days_kept)
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._now = now
        self._thread = LoopThread("view", self._main)
        self.snapshot: Snapshot | None = None
        """The funnel, or `None` until every partition has caught up."""
        self._state = "not started"
        self.snapshot_seconds = 0.0

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The view of the tables that workers with these settings keep."""
        return cls(
            aiokafka_options(settings),
            funnel_changelog(settings.app_id),
            zone=ZoneInfo(settings.timezone),
            days_kept=settings.pane_retention_day_days,
            clock=settings.clock,
            refresh_seconds=settings.view_refresh_seconds,
        )

    @property
    def caught_up(self) -> bool:
        """Whether there are numbers to show."""
        return self.snapshot is not None

    def not_ready(self) -> str | None:
        """Why there are no numbers yet; `None` when there are."""
        return None if self.caught_up and self.failure is None else self.state

    @property
    def state(self) -> str:
        """One sentence for whoever asks why there are no numbers yet, or why they stand still."""
        return self._state if self.failure is None else f"stopped: {self.failure}"

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread, if something did: a bug or a changelog that is none."""
        return self._thread.failure

    @property
    def now_s(self) -> int:
        """The moment that counts as now: by the wall clock, or the newest event in a replay."""
        if self._clock == "event":
            return self.snapshot.now_s if self.snapshot is not None else 0
        return int(self._now())

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the broker and end the thread."""
        self._thread.stop()

    async def _main(self, ready: Callable[[], None]) -> None:
        self._state = "connecting to the broker"
        ready()
        while True:
            try:
                await self._tail()
            except _StartOverError as why:
                self.snapshot = None
                self._state = f"reading {self._topic} again from the beginning: {why}"
            except OffsetOutOfRangeError:
                self.snapshot = None
                self._state = (
                    f"reading {self._topic} again from the beginning: it does not hold what was read"
                )
            except (KafkaError, OSError) as error:
                self._state = f"the broker does not answer: {error}"
            await asyncio.sleep(_RETRY_SECONDS)

    async def _tail(self) -> None:
        repair()
        consumer = AIOKafkaConsumer(
            **self._connection,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            metadata_max_age_ms=60_000,
        )
        try:
            await consumer.start()
            await self._follow(consumer, await self._partitions(consumer))
        finally:
            await consumer.stop()

    async def _partitions(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        while self._topic not in await consumer.topics():
            self._state = f"the topic {self._topic} does not exist yet; `callfunnel topics create` makes it"
            await asyncio.sleep(_RETRY_SECONDS)
        first = TopicPartition(self._topic, 0)
        consumer.assign([first])
        await consumer.end_offsets([first])  # its metadata names the other partitions
        partitions = [
            TopicPartition(self._topic, n) for n in sorted(consumer.partitions_for_topic(self._topic))
        ]
        consumer.assign(partitions)
        return partitions

    async def _follow(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        funnel = self._new_funnel()
        for partition, start in (await consumer.beginning_offsets(partitions)).items():
            consumer.seek(partition, start)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        unfinished: dict[TopicPartition, Changes] = {partition: {} for partition in partitions}
        behind = set(partitions)
        changed = True
        refreshed = looked = time.monotonic()
        while True:
            pause = max(self._refresh_seconds, _SNAPSHOT_SPACING * self.snapshot_seconds)
            wait = pause if behind else refreshed + pause - time.monotonic()
            arrived = await fetch(consumer, _RECORDS_AT_ONCE, wait)
            for partition in partitions:
                position = await consumer.position(partition)
                read = arrived.get(partition)
                keys, values = (read.keys, read.values) if read else ([], [])
                if partition in behind and position < ends[partition]:
                    unfinished[partition].update(zip(keys, values, strict=True))
                    continue
                # The end of a log that is read committed is the end of a batch.
                whole = position in (ends[partition], consumer.last_stable_offset(partition))
                end = len(keys) if whole else _end_of_batches(keys)
                if end or whole:
                    finished = unfinished[partition]
                    finished.update(zip(keys[:end], values[:end], strict=True))
                    await self._apply(funnel, partition, finished, position)
                    unfinished[partition] = dict(zip(keys[end:], values[end:], strict=True))
                    behind.discard(partition)
                    changed |= bool(finished)
                else:
                    unfinished[partition].update(zip(keys, values, strict=True))
            if behind:
                left = sum([ends[partition] - await consumer.position(partition) for partition in behind])
                self._state = f"catching up: {left} records of {self._topic} are left to read"
                continue
            clock = time.monotonic()
            if self.snapshot is None or clock - refreshed >= pause:
                refreshed = clock
                self._refresh(funnel, changed)
                changed = False
            if clock - looked >= _LOOK_SECONDS:
                looked = clock
                await self._look(consumer, partitions)

    async def _apply(self, funnel: Funnel, partition: TopicPartition, changes: Changes, read_to: int) -> None:
        for n, (key, value) in enumerate(changes.items()):
            if n % _RECORDS_AT_ONCE == _RECORDS_AT_ONCE - 1:
                await asyncio.sleep(0)  # a whole log may take seconds, and we may be told to stop
            try:
                funnel.apply(partition.partition, key or b"", value)
            except (msgspec.MsgspecError, ValueError, TypeError) as error:
                raise RuntimeError(
                    f"{partition.topic}[{partition.partition}] holds what is no row of the funnel table "
                    f"(rollup {_rollup(key)}, before offset {read_to}): {error}"
                ) from error

    def _refresh(self, funnel: Funnel, changed: bool) -> None:
        """Take a new snapshot if it would tell anything new."""
        now_s = funnel.newest_ms // 1000 if self._clock == "event" else int(self._now())
        if self.snapshot is None or changed or now_s // 60 != self.snapshot.now_s // 60:
            started = time.perf_counter()
            self.snapshot = funnel.snapshot(now_s)
            self.snapshot_seconds = time.perf_counter() - started
            if changed:
                self._state = "live"

    async def _look(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        """Whether the log is still the one that was read."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS / 2):
                ends = await consumer.end_offsets(partitions)
        except (KafkaError, TimeoutError) as error:
            if consumer.partitions_for_topic(self._topic) is None:
                raise _StartOverError("it was deleted") from error
            self._state = f"the broker does not answer, the numbers stand still: {error!r}"
            return
        for partition in partitions:
            if ends[partition] < await consumer.position(partition):
                raise _StartOverError(f"partition {partition.partition} ends before what was read")
        if consumer.partitions_for_topic(self._topic) != {partition.partition for partition in partitions}:
            raise _StartOverError("the number of its partitions changed")
        self._state = "live"


def _rollup(key: bytes | None) -> str:
    """All that is told of a key: its dimension values name people."""
    try:
        _, _, rollup, *_ = decode_key(key or b"")
    except (msgspec.MsgspecError, ValueError):
        return "unknown"
    return rollup if rollup in ROLLUPS else "unknown"


def _end_of_batches(keys: Sequence[bytes | None]) -> int:
    """How many of the records are whole batches: a position row is the last of its batch."""
    return next((n for n in range(len(keys), 0, -1) if keys[n - 1] == POSITION_KEY), 0)

"""The funnel as it is now: the newest rows of the changelog, summed over its partitions.

The law: a snapshot is never a partial sum. Every partition stands at the end of a batch, which its position
row closes, and there is none before every partition has reached the end that its log had at the start.
Rows that were folded with different settings are never summed, and where days begin is what the positions
say, not a setting. Nothing here depends on which worker wrote a row, so nothing moves when partitions do.

An old snapshot never passes as a new one. While the brokers do not answer, the view is not current and there
are no numbers. While records of the source wait to be counted, windows end at the moment up to which the
numbers are complete: a window that ended now would shrink because the engine is late.
"""

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import tzinfo
from functools import partial
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError, TopicAuthorizationFailedError

from callfunnel.agents import memory
from callfunnel.agents.choice import sums_for
from callfunnel.agents.config import Settings
from callfunnel.agents.kafka.answers import Answers
from callfunnel.agents.kafka.connection import aiokafka_options
from callfunnel.agents.kafka.microbatch import fetch, wake
from callfunnel.agents.kafka.read_committed import FIRST_BYTES, repair
from callfunnel.agents.remedies import REMEDIES
from callfunnel.agents.threads import LoopThread
from callfunnel.agents.view.arrivals import Arrivals, Source
from callfunnel.agents.view.feed import Changes, Committed, Feed, Waiting
from callfunnel.schemas.topics import funnel_changelog
from callfunnel.streams import measures
from callfunnel.streams.records import Pairs, Records
from callfunnel.streams.rows import (
    BASE,
    POSITION_KEY,
    Columns,
    Position,
    decode_key,
    decode_position,
    generation_of,
)
from callfunnel.streams.sums import Dimensions, NotARow, PlainSums, Sums
from callfunnel.streams.windows import (
    WINDOWS,
    WINDOWS_AND_ALL,
    Uncalled,
    due,
    of_archived,
    seen,
    total,
    uncalled,
    window_panes,
)

SEGMENT, PERSON, LOCATION = ROLLUPS = tuple(rollup.name for rollup in measures.ROLLUPS)

_LOOK_SECONDS = 5.0
_RETRY_SECONDS = 1.0
_RECORDS_AT_ONCE = 10_000
_FRESH_SECONDS = 0.5
"""So long somebody who asks waits for newer numbers at most."""
_JUDGE_SECONDS = 2.0
"""How often it is judged whether the numbers are complete, where nobody asks."""
_QUIET_TURN_SECONDS = 1.0
"""How often it looks for what the worker has committed, where there was nothing the last time."""
_SNAPSHOT_SPACING = 2
"""The next snapshot begins after so many times what the last one took: half of the view's time at most."""
_QUIET_SECONDS = 300.0
"""A floor without an event for so long is quiet."""
_IN_MEMORY_SECONDS = 2.0
"""So long after a batch that came in memory the broker is not asked for more of its partition."""
_MINUTES_HELD_SECONDS = 3_600
"""So far behind the newest event a window may end: every partition still holds the minutes for it."""

State = Literal["connecting", "catching_up", "current", "stale", "failed"]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The funnel at a moment. Nobody changes it any more, so any thread may read it."""

    now_s: int
    positions: Mapping[int, Position]
    """How far the rows of each source partition go."""
    windows: Mapping[str, Mapping[str, Mapping[Dimensions, Columns]]]
    """Window or `all`, rollup, dimension values, columns; `all` has only the rollup `campaign+source`."""
    prefixes: Mapping[str, Mapping[tuple[str, int], Mapping[Dimensions, Columns]]]
    """The same rows, summed by the first n dimension values: window, (rollup, n), those values, columns."""
    due: Mapping[str, Mapping[Dimensions, tuple[int, int]]]
    """Window or `all`, campaign and source: leads due, leads met."""
    due_of_campaigns: Mapping[str, Mapping[Dimensions, tuple[int, int]]]
    """The same by campaign alone."""
    uncalled: Mapping[Dimensions, Uncalled]
    seen: Mapping[str, set[Dimensions]]
    """Rollup: dimension values that were seen in the last 48 hours, or are in a window."""
    archived: Mapping[Dimensions, Columns]
    """What archived leads add to all time, by campaign and source."""
    rows: int
    poisoned: Mapping[int, float]
    """Poisoned partitions, and which share of their newest records was rejected."""
    turned: Sequence[int] = ()
    """Partitions that stand still until the rows of all are derived anew."""

    @property
    def newest_ms(self) -> int:
        """The newest event, 0 before the first one."""
        return _newest_ms(self.positions)

    @property
    def horizon_ms(self) -> int:
        """Up to when leads may be archived, 0 before any is."""
        return max((0, *(position.horizon_ms for position in self.positions.values())))


def _newest_ms(positions: Mapping[int, Position]) -> int:
    return max((0, *(position.watermark_ms for position in positions.values())))


@dataclass(frozen=True, slots=True)
class Standing:
    """How a view stands at a moment: what it shows, and what it tells of itself."""

    state: State
    snapshot: Snapshot | None = None
    """The numbers, while the state is `current`."""
    verdict: str = ""
    """The state; where that is `current`: `live`, `quiet`, `empty`, `replay`, `behind` or `unchecked`."""
    reason: str = ""
    """A sentence: why there are no numbers, or what has to be known of them."""
    complete_s: float | None = None
    """Up to when the newest numbers are complete, Unix seconds."""
    answered_s: float | None = None
    """When a broker last answered; `None` before any has."""
    lag: int | None = None
    """Records of the changelog that are not read; `None` while that is unknown."""
    source_lags: Mapping[int, int] = field(default_factory=dict)
    """Partition: records of the source that are not in the numbers; without those where that is unknown."""


class _StartOverError(Exception):
    """What was read is not the past of the log any more: somebody made it anew."""


class Funnel:
    """The rows of all partitions and their sum, kept as rows come.

    While workers derive the rows anew (`agents.engine.ingest`), partitions turn to the new fold one after the
    other. What is shown stays of one fold: the old one until every partition has turned, and a partition that
    has turned stands still until then. `positions` are those of what is shown.

    `zone` and `days_kept` stand in where no position says them: they were written before it was kept.
    """

    def __init__(self, zone: tzinfo, days_kept: int = 400, new_sums: Callable[[], Sums] = PlainSums) -> None:
        self._zone = zone
        self._days_kept = days_kept
        self._sums = new_sums()
        self._base_later = defaultdict[int, dict[bytes, bytes | None]](dict)
        """By partition, base rows that belong to rows that are not shown yet."""
        self._newest: dict[int, Position] = {}
        self.positions: dict[int, Position] = {}

    def apply(self, partition: int, key: bytes, value: bytes | None) -> None:
        """As `advance`, of a position, or `take`, of a row."""
        if key == POSITION_KEY:
            self.advance(partition, value or b"")
        else:
            self.take(partition, [(key, value)])

    def take(self, partition: int, changes: Pairs) -> None:
        """Take the new values of rows of a partition, in their order; `None` deletes. Raises `NotARow`.

        Of whole batches, after their position (`advance`), which is passed over here.
        """
        self._sums.apply(partition, self._for_now(partition, changes))

    def advance(self, partition: int, position: bytes) -> None:
        """Take the newest position of a partition. Raises `NotARow`."""
        try:
            self._advance(partition, decode_position(position))
        except msgspec.MsgspecError as error:
            raise NotARow(POSITION_KEY, str(error)) from error

    def _for_now(self, partition: int, changes: Pairs) -> Pairs:
        """Without what is for later: a partition that has turned is shown as it was."""
        if not self._has_turned(partition):
            return changes
        shown, now = self.positions[partition].generation, []
        for key, value in changes:
            if key is None or key == POSITION_KEY:
                continue
            generation = generation_of(key)
            if generation == BASE:
                self._base_later[partition][key] = value
            elif value is not None or generation != shown:
                now.append((key, value))
        return now

    def _settle(self) -> None:
        """Show what was applied, where it is of one fold; else what goes on of the fold that is shown."""
        one_fold = len({position.fold for position in self._newest.values()}) == 1
        for partition, newest in self._newest.items():
            shown = self.positions.get(partition)
            if shown is not None and shown.fold == newest.fold and shown.generation == newest.generation:
                self.positions[partition] = newest
            elif one_fold:
                self._show(partition, newest)

    def _show(self, partition: int, position: Position) -> None:
        self._sums.show(partition, position.generation)
        self.positions[partition] = position
        self._sums.apply(partition, self._base_later.pop(partition, {}).items())

    def _has_turned(self, partition: int) -> bool:
        shown, newest = self.positions.get(partition), self._newest.get(partition)
        return shown is not None and newest is not None and shown.generation != newest.generation

    def _advance(self, partition: int, position: Position) -> None:
        before = self._newest.get(partition)
        if before is not None and position.offset < before.offset:
            raise _StartOverError(
                f"partition {partition} went back from offset {before.offset} to {position.offset}"
            )
        self._newest[partition] = position

    @property
    def records_type(self) -> type[Records]:
        """The records that `take` takes fastest."""
        return self._sums.records_type

    @property
    def contradiction(self) -> str | None:
        """Why the rows of all partitions have no sum, in words; None when they have one."""
        self._settle()
        if self.positions.keys() == self._newest.keys():
            return None
        folds = defaultdict[tuple[str, str], list[int]](list)
        zones = {position.fold: position.timezone for position in self._newest.values() if position.timezone}
        for partition, position in sorted(self._newest.items()):
            folds[position.fold, zones.get(position.fold, "time zone not known")].append(partition)
        told = "; ".join(
            f"{', '.join(map(str, partitions))}: fold {fold} ({zone})"
            for (fold, zone), partitions in folds.items()
        )
        return (
            f"no numbers: partitions {told}. The tables are made with different settings of the fold. "
            "Workers derive the rows anew, one partition after the other: wait for it. Where it stops, "
            f"no worker with the new settings runs: start one, and {REMEDIES['fold-adopt']}"
        )

    @property
    def turned(self) -> Sequence[int]:
        """The partitions whose new rows are not shown, because others are still of the fold before."""
        return [partition for partition in sorted(self.positions) if self._has_turned(partition)]

    def _calendar(self) -> tuple[tzinfo, int]:
        """Where days begin and end, and for how many seconds day rows are kept."""
        for position in self.positions.values():
            if position.timezone:
                return ZoneInfo(position.timezone), position.days_kept * 86_400
        return self._zone, self._days_kept * 86_400

    def snapshot(self, now_s: int) -> Snapshot:
        """The funnel with its windows ending at `now_s`."""
        self._settle()
        zone, days_kept_s = self._calendar()
        sums = self._sums
        panes = {window: window_panes(window, now_s, zone) for window in WINDOWS_AND_ALL}
        read = [(window, rollup) for window in WINDOWS for rollup in measures.ROLLUPS]
        read.append(("all", measures.SEGMENT))
        windows: dict[str, dict[str, Mapping[Dimensions, Columns]]] = {window: {} for window in panes}
        prefixes: dict[str, dict[tuple[str, int], Mapping[Dimensions, Columns]]]
        prefixes = {window: {} for window in panes}
        for window, rollup in read:
            name = rollup.name
            windows[window][name] = total(sums, window, name, panes[window])
            for depth in range(len(rollup.dimensions)):
                prefixes[window][name, depth] = total(sums, window, name, panes[window], depth)
        return Snapshot(
            now_s=now_s,
            positions=dict(self.positions),
            windows=windows,
            prefixes=prefixes,
            due={window: due(sums, window, now_s, zone) for window in windows},
            due_of_campaigns={window: due(sums, window, now_s, zone, 1) for window in windows},
            uncalled=uncalled(sums, now_s, days_kept_s),
            archived=of_archived(sums, SEGMENT),
            seen={
                rollup: {*seen(sums, rollup, now_s)}.union(*(windows[window][rollup] for window in WINDOWS))
                for rollup in ROLLUPS
            },
            rows=len(sums),
            poisoned={
                partition: position.rejected_share
                for partition, position in self.positions.items()
                if position.poison != "none"
            },
            turned=self.turned,
        )


class View:
    """Tails the changelog of the funnel table in its own thread; `snapshot` has its newest numbers.

    `connection` holds the keyword arguments that any aiokafka client of this broker needs. `source` makes the
    object that asks about the source topic; without it, the source lag is unknown. Numbers are made anew
    when somebody asks (`fresh`), `refresh_seconds` after the last ones at the soonest, and every
    `unasked_seconds`.
    """

    def __init__(
        self,
        connection: Mapping[str, Any],
        topic: str,
        *,
        zone: tzinfo,
        days_kept: int = 400,
        new_sums: Callable[[], Sums] = PlainSums,
        clock: Literal["wall", "event"] = "wall",
        refresh_seconds: float = 0.2,
        unasked_seconds: float = 10.0,
        stale_seconds: float = 15.0,
        source: Callable[[Callable[[], Mapping[int, int]], Callable[[], object]], Source] | None = None,
        now: Callable[[], float] = time.time,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connection = dict(connection)
        self._topic = topic
        self._new_funnel = partial(Funnel, zone, days_kept, new_sums)
        self._clock = clock
        self._refresh_seconds = refresh_seconds
        self._unasked_seconds = unasked_seconds
        self._stale_seconds = stale_seconds
        self._now = now
        self._ticks = ticks
        self._thread = LoopThread("view", self._main)
        self._answers = Answers(stale_seconds, ticks)
        self._source = source(lambda: self._offsets, lambda: self._answers.hear({})) if source else None
        self._arrivals = Arrivals(ticks, now)
        self._waiting = Waiting()
        self._asked: list[Future[None]] = []
        self._wake: Callable[[], object] = lambda: None
        self._offsets: Mapping[int, int] = {}
        self._read: Mapping[TopicPartition, int] = {}
        """How far each partition of the changelog is read."""
        self._phase: Literal["connecting", "catching_up", "current"] = "connecting"
        self._why = "not started"
        self._complete_s: float | None = None
        self.snapshot: Snapshot | None = None
        """The newest numbers, however old they are; `None` before the first ones."""
        self.snapshot_seconds = 0.0

    @classmethod
    def of(cls, settings: Settings, **options: Any) -> Self:
        """The view of the tables that workers with these settings keep; `options` as for the class."""
        return cls(
            aiokafka_options(settings),
            funnel_changelog(settings.app_id),
            zone=ZoneInfo(settings.timezone),
            days_kept=settings.pane_retention_day_days,
            new_sums=sums_for(settings.tables),
            clock=settings.clock,
            refresh_seconds=settings.view_refresh_seconds,
            stale_seconds=settings.stale_seconds,
            source=partial(Source, settings),
            **options,
        )

    async def fresh(self) -> None:
        """Wait for a moment until the numbers are those of now. In any event loop."""
        if self._phase != "current":
            return
        answer = Future[None]()
        self._asked.append(answer)
        self._wake()
        with suppress(TimeoutError):
            async with asyncio.timeout(_FRESH_SECONDS):
                await asyncio.wrap_future(answer)

    @staticmethod
    def _answer(asked: Iterable[Future[None]]) -> None:
        """Tell those who asked that there are no newer numbers."""
        for answer in asked:
            if answer.set_running_or_notify_cancel():
                answer.set_result(None)

    def standing(self) -> Standing:
        """What is shown, and how it stands."""
        state, reason = self._stand()
        snapshot = self.snapshot if state == "current" else None
        verdict: str = state
        if snapshot is not None:
            verdict, reason = self._judge(snapshot)
        ends = {tp: self._answers.end(tp) for tp in self._read}
        unread = [max(0, end - self._read[tp]) for tp, end in ends.items() if end is not None]
        return Standing(
            state=state,
            snapshot=snapshot,
            verdict=verdict,
            reason=reason,
            complete_s=self._complete_s,
            answered_s=self._answers.timestamp_seconds,
            lag=sum(unread) if ends and len(unread) == len(ends) else None,
            source_lags=self._source_lags(),
        )

    @property
    def current(self) -> Snapshot | None:
        """The numbers, while the view is current."""
        return self.standing().snapshot

    def not_ready(self) -> str | None:
        """Why there are no numbers; `None` when there are."""
        state, reason = self._stand()
        return None if state == "current" else reason

    def _stand(self) -> tuple[State, str]:
        """The state, and why there are no numbers in it."""
        if self.failure is not None:
            return "failed", f"stopped: {self.failure}"
        silence = self._answers.silence()
        if self._phase == "current":
            return ("stale", f"{silence}: the numbers stand still") if silence else ("current", "")
        if self._phase == "connecting" and self.snapshot is not None:
            return "stale", f"{self._why}: the numbers stand still"
        return self._phase, f"{self._why}; {silence}" if silence else self._why

    def _judge(self, at: Snapshot) -> tuple[str, str]:
        """How current numbers stand, in one word, and a sentence where there is more to say."""
        if at.turned:
            return "behind", (
                "workers derive the rows anew with other settings: partitions "
                f"{', '.join(map(str, at.turned))} of {len(at.positions)} are through and stand still here "
                "until all are"
            )
        trouble = self._source.trouble if self._source else "this view does not ask about the source"
        if trouble:
            return "unchecked", f"{trouble}: whether events wait to be counted is unknown"
        if self._behind_seconds:
            return "behind", self._behind_what(self._behind_seconds)
        if not at.newest_ms and any(self._arrivals.lags.values()):
            return "behind", "no event has been counted yet, and records wait in the source"
        if not at.newest_ms:
            return "empty", "no event has been counted yet; `callfunnel check` says what may be missing"
        if abs(self._now() - at.newest_ms / 1000) <= _QUIET_SECONDS:
            return "live", ""
        if self._clock == "event":
            return "replay", ""
        return "quiet", "all that has arrived is counted: nobody calls, or no events reach Kafka"

    @property
    def _behind_seconds(self) -> float:
        """How long ago the numbers were complete, if that is too long; 0 otherwise, and if it is unknown."""
        at = self._arrivals.complete_at
        age = 0.0 if at is None else self._ticks() - at
        return age if age > self._stale_seconds else 0.0

    def _behind_what(self, seconds: float) -> str:
        assert self._source is not None
        topic = self._source.topic
        for partition, end in self._arrivals.shrunk.items():
            return (
                f"{topic}/{partition} ends at offset {end}, but the numbers hold later records: the topic "
                "was truncated or created anew, and its new records are not counted"
            )
        waiting = self._source_lags()
        if not waiting:
            return f"the broker has not said for {seconds:.0f} s where {topic} ends"
        return (
            f"{sum(waiting.values()):,} records of {topic} are not counted yet, and the numbers are those of "
            f"{seconds:.0f} s ago: check that enough workers run, and what their /-/ready says"
        )

    def _source_lags(self) -> Mapping[int, int]:
        told = self._source.told if self._source else None
        if self._phase != "current" or told is None or self._ticks() - told.asked_at > self._stale_seconds:
            return {}
        return self._arrivals.lags

    @property
    def failure(self) -> BaseException | None:
        """What ended the thread, if something did: a bug or a changelog that is none."""
        return self._thread.failure

    @property
    def now_s(self) -> int:
        """The moment that the numbers are of: where windows end, if not by the wall clock."""
        if self.snapshot is not None and (self._clock == "event" or self._behind_seconds):
            return self.snapshot.now_s
        return int(self._now()) if self._clock == "wall" else 0

    @property
    def delay_s(self) -> float | None:
        """How long ago the newest event happened; 0 in a replay, where it is now; `None` before the first."""
        newest_ms = self.snapshot.newest_ms if self.snapshot else 0
        if not newest_ms or self._clock == "event":
            return 0.0 if newest_ms else None
        return max(0.0, self._now() - newest_ms / 1000)

    def hand(self, committed: Committed) -> None:
        """Take what a worker of this process has committed: it need not be read. Any thread may call it."""
        self._waiting.put(committed)

    def start(self) -> None:
        """Begin to read; returns at once."""
        self._thread.start()
        if self._source:
            self._source.start()

    def stop(self) -> None:
        """Leave the broker and end the thread."""
        if self._source:
            self._source.stop()
        self._thread.stop()

    async def _main(self, ready: Callable[[], None]) -> None:
        self._why = "connecting to the broker"
        ready()
        while True:
            try:
                await self._tail()
            except _StartOverError as why:
                self._start_over(str(why))
            except OffsetOutOfRangeError:
                self._start_over("it does not hold what was read")
            except TopicAuthorizationFailedError:
                self._phase = "connecting"
                self._why = (
                    f"this view lacks Read on topic {self._topic}: `callfunnel topics rights` prints the "
                    "command that grants it"
                )
            except (KafkaError, OSError) as error:
                self._phase, self._why = "connecting", f"the broker does not answer: {error}"
            await asyncio.sleep(_RETRY_SECONDS)

    def _start_over(self, why: str) -> None:
        self.snapshot = self._complete_s = None
        self._phase, self._why = "connecting", f"reading {self._topic} again from the beginning: {why}"

    async def _tail(self) -> None:
        repair()
        consumer = AIOKafkaConsumer(
            **self._connection,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_bytes=FIRST_BYTES,
            metadata_max_age_ms=60_000,
        )
        try:
            await consumer.start()
            await self._follow(consumer, await self._partitions(consumer))
        finally:
            self._waiting.close()
            self._wake = lambda: None
            await consumer.stop()

    async def _partitions(self, consumer: AIOKafkaConsumer) -> list[TopicPartition]:
        while self._topic not in await consumer.topics():
            self._phase = "connecting"
            self._why = f"the topic {self._topic} does not exist yet; `callfunnel topics create` makes it"
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
        self._phase, self._why = "catching_up", f"asking how long {self._topic} is"
        self._arrivals = Arrivals(self._ticks, self._now)
        self._read = {}
        self._answers.watch(partitions)
        starts = await consumer.beginning_offsets(partitions)
        for partition, start in starts.items():
            consumer.seek(partition, start)
        ends: dict[TopicPartition, int] = await consumer.end_offsets(partitions)
        self._answers.hear(ends)
        kind = funnel.records_type
        feeds = {partition: Feed(starts[partition], ends[partition], kind) for partition in partitions}
        rests_until: dict[TopicPartition, float] = {}
        polled: dict[TopicPartition, int | None] = {}
        changed = is_behind = True
        is_quiet = False
        refreshed = taken = looked = time.monotonic()
        self._waiting.open()
        self._wake = partial(asyncio.get_running_loop().call_soon_threadsafe, wake, consumer)
        while True:
            pause = max(self._refresh_seconds, _SNAPSHOT_SPACING * self.snapshot_seconds)
            wait = _QUIET_TURN_SECONDS if is_quiet else self._refresh_seconds
            arrived = await fetch(consumer, _RECORDS_AT_ONCE, wait, self._is_asked, kind)
            asked = [self._asked.pop() for _ in range(len(self._asked))]
            polled = self._hear(consumer, partitions, polled)
            waiting = self._waiting.take()
            is_quiet = not (arrived or waiting)
            for committed in waiting:
                feeds[TopicPartition(self._topic, committed.partition)].hand(committed)
            for partition, feed in feeds.items():
                batch = arrived.get(partition)
                read = feed.read(
                    batch.changes(kind) if batch is not None else None,
                    await consumer.position(partition),
                    consumer.last_stable_offset(partition),
                )
                in_memory = feed.follow()
                for changes in (read, in_memory):
                    changed |= await self._apply(funnel, partition, changes, feed.position)
                if in_memory.parts:
                    consumer.pause(partition)
                    rests_until[partition] = time.monotonic() + _IN_MEMORY_SECONDS
                    self._answers.hear({partition: feed.position})
                elif rests_until.get(partition, math.inf) < time.monotonic():
                    del rests_until[partition]
                    consumer.seek(partition, feed.position)
                    consumer.resume(partition)
            self._read = {partition: feed.position for partition, feed in feeds.items()}
            is_behind = any(feed.is_behind for feed in feeds.values())
            if is_behind:
                self._answer(asked)
                left = sum(feed.left for feed in feeds.values() if feed.is_behind)
                self._why = f"catching up: {left} records of {self._topic} are left to read"
                continue
            clock = time.monotonic()
            spacing = pause if asked else max(pause, min(_JUDGE_SECONDS, self._unasked_seconds))
            if self.not_ready() or clock - refreshed >= spacing:
                refreshed = clock
                is_due = bool(asked) or clock - taken >= self._unasked_seconds
                if self._refresh(funnel, changed and is_due) and is_due:
                    changed, taken = False, clock
            self._answer(asked)
            if clock - looked >= _LOOK_SECONDS:
                looked = clock
                await self._look(consumer, partitions)

    def _is_asked(self) -> bool:
        return bool(self._asked)

    async def _apply(self, funnel: Funnel, partition: TopicPartition, changes: Changes, read_to: int) -> bool:
        """Whether there was anything."""
        parts = [part for part in changes.parts if len(part)]
        try:
            if changes.position is not None:
                funnel.advance(partition.partition, changes.position)
            for part in parts:
                funnel.take(partition.partition, part)
                await asyncio.sleep(0)  # a whole log may take seconds, and we may be told to stop
        except NotARow as error:
            raise RuntimeError(
                f"{partition.topic}[{partition.partition}] holds what is no row of the funnel table "
                f"(rollup {_rollup(error.key)}, before offset {read_to}): {error}"
            ) from error
        return bool(parts)

    def _hear(
        self,
        consumer: AIOKafkaConsumer,
        partitions: list[TopicPartition],
        before: Mapping[TopicPartition, int | None],
    ) -> dict[TopicPartition, int | None]:
        """Note whose fetches were answered since `before`; when each of them last was."""
        polled = {partition: consumer.last_poll_timestamp(partition) for partition in partitions}
        heard = [tp for tp, at in polled.items() if at is not None and at != before.get(tp)]
        if heard:
            self._answers.hear(
                {tp: consumer.last_stable_offset(tp) or consumer.highwater(tp) for tp in heard}
            )
        return polled

    def _refresh(self, funnel: Funnel, changed: bool) -> bool:
        """Take a new snapshot if it would differ; False while brokers are silent, when none is taken."""
        if self._answers.silence():
            return False
        if (why := funnel.contradiction) is not None:
            self.snapshot, self._phase, self._why = None, "catching_up", why
            return False
        told = self._source.told if self._source else None
        if told is not None:
            self._arrivals.compare(told, funnel.positions)
        elif self._source and not self._source.trouble:
            self._why = f"the broker has not said yet where {self._source.topic} ends"
            return False
        else:
            self._arrivals = Arrivals(self._ticks, self._now)
        now_s = self._windows_end_s(_newest_ms(funnel.positions) // 1000)
        if self._phase != "current" or changed or now_s // 60 != self.snapshot.now_s // 60:  # type: ignore[union-attr]
            started = time.perf_counter()
            self.snapshot = funnel.snapshot(now_s)
            self.snapshot_seconds = time.perf_counter() - started
        if self._phase != "current":
            memory.give_back()
        at = self._arrivals.complete_at
        self._complete_s = self._now() - (0.0 if at is None else self._ticks() - at)
        self._offsets = {partition: position.offset for partition, position in funnel.positions.items()}
        self._phase = "current"
        return True

    def _windows_end_s(self, newest_s: int) -> int:
        if self._clock == "event":
            return newest_s
        now_s, behind_s = self._now(), self._behind_seconds
        return int(max(now_s - behind_s, newest_s - _MINUTES_HELD_SECONDS) if behind_s else now_s)

    async def _look(self, consumer: AIOKafkaConsumer, partitions: list[TopicPartition]) -> None:
        """Whether the log is still the one that was read."""
        try:
            async with asyncio.timeout(_LOOK_SECONDS / 2):
                ends = await consumer.end_offsets(partitions)
        except (KafkaError, TimeoutError) as error:
            if consumer.partitions_for_topic(self._topic) is None:
                raise _StartOverError("it was deleted") from error
            return
        for partition in partitions:
            if ends[partition] < await consumer.position(partition):
                raise _StartOverError(f"partition {partition.partition} ends before what was read")
        if consumer.partitions_for_topic(self._topic) != {partition.partition for partition in partitions}:
            raise _StartOverError("the number of its partitions changed")


def _rollup(key: bytes | None) -> str:
    """All that is told of a key: its dimension values name people."""
    try:
        _, _, rollup, *_ = decode_key(key or b"")
    except (msgspec.MsgspecError, ValueError):
        return "unknown"
    return rollup if rollup in ROLLUPS else "unknown"

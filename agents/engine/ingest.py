"""From a micro-batch to a committed transaction: the guard, the fold and the write, for each owned partition.

The law here:
* nothing is counted of a topic that the tables were not made from (`agents.engine.source`);
* a batch is applied only where the one before it ended; an overlap is skipped, a hole is fetched again;
* the state says where to resume, never the group's committed offset;
* the batch is acknowledged after its transaction; whatever goes wrong before ends the process;
* nothing is folded, and nothing sent home, once a client of this worker has heard that the source has another
  number of partitions: leads are at home elsewhere then.
"""

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from itertools import repeat

from aiokafka.errors import KafkaError
from faust.types import TP, EventT
from msgspec.structs import replace

from callfunnel.agents import failpoints
from callfunnel.agents.engine.deadletter import dead_letters, sent_home
from callfunnel.agents.engine.in_doubt import InDoubt, Positions
from callfunnel.agents.engine.metrics import EngineMetrics
from callfunnel.agents.engine.poison import Refusals
from callfunnel.agents.engine.rerouting import Mark
from callfunnel.agents.engine.source import GONE, Found, Source, another_id, resume_all
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.errors import Stalled, TablesWrong, TakenOver, TopicsWrong
from callfunnel.agents.kafka.app import Group
from callfunnel.agents.kafka.hanging import At
from callfunnel.agents.kafka.microbatch import MOST_BYTES, MicroBatch
from callfunnel.agents.kafka.producer import Record
from callfunnel.agents.remedies import REMEDIES
from callfunnel.agents.view.feed import Committed, OnCommit
from callfunnel.schemas.codec import moment
from callfunnel.schemas.topics import resume_group
from callfunnel.streams.engine import Mismatch, Partition
from callfunnel.streams.rows import LEADS_POSITION_KEY, POSITION_KEY, Position, decode_position
from callfunnel.streams.tables import Effects

log = logging.getLogger(__name__)

MOST_WAITING = 64
"""Batches that may wait for a partition, however small they are."""

WORTH_RECORDS = 200
"""So many records of a partition wait for nothing more: a transaction costs less than they do."""

DERIVED_AT_ONCE, ROWS_AT_ONCE = 1_000, 20_000
"""Leads in a step of a derivation, rows in one of its transactions."""

TELL_SECONDS = 10.0
"""How often a derivation says how far it is."""

LOOK_SECONDS = 2.0
"""How often a partition that stands still looks whether it may go on."""


class Lane:
    """One owned partition: its state, and the batches waiting for it.

    Small fetches gather here until the transaction before them is written and was begun `spacing_seconds`
    ago; the next one takes them all. So a slow broker makes transactions larger, and the numbers no older
    than two of them; and a small floor pays for few transactions.
    """

    def __init__(self, state: Partition, most_records: int, spacing_seconds: float) -> None:
        self.state = state
        self._spacing_seconds = spacing_seconds
        self._rests_until = 0.0
        self.is_stopped = False
        """It is poisoned, and waits for an operator."""
        self.trouble = ""
        """Why it is not known whether a stopped partition may go on, as it was told last."""
        self.task: asyncio.Task[None] | None = None
        self.progress_at = time.monotonic()
        self.seeks = 0
        self.durable: int | None = None
        """Up to which source offset the tables are written; `state` is ahead of it during a transaction."""
        self.owes = False
        """Whether the loss of records is not in the tables yet."""
        self.waiting: deque[EventT] = deque()
        self._most_records = most_records
        self._changed = asyncio.Condition()

    async def put(self, event: EventT) -> bool:
        """Add a batch; waits while there are enough. False where the lane is stopped and takes none."""
        async with self._changed:
            await self._changed.wait_for(self._has_room)
            if self.is_stopped:
                return False
            self.waiting.append(event)
            self._changed.notify_all()
            return True

    async def stop(self) -> list[EventT]:
        """Take no batch from now on; those that were waiting."""
        async with self._changed:
            self.is_stopped = True
            waiting = list(self.waiting)
            self.waiting.clear()
            self._changed.notify_all()
            return waiting

    async def get(self) -> list[EventT]:
        """The first batch, and those that go on where it ends, up to what one transaction may take."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.waiting)
            await self._rest()
            taken = [self.waiting.popleft()]
            records, size = len(taken[0].value), taken[0].value.size
            while self.waiting:
                last, following = taken[-1].value, self.waiting[0].value
                records += len(following)
                size += following.size
                if records > self._most_records or size > MOST_BYTES or not last.goes_on(following):
                    break
                taken.append(self.waiting.popleft())
            self._changed.notify_all()
            return taken

    async def _rest(self) -> None:
        """Until the next transaction may begin, or so many records wait that it is worth its price."""
        left = self._rests_until - time.monotonic()
        if left > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._changed.wait_for(lambda: self._is_worth_it() or not self._has_room())
        self._rests_until = time.monotonic() + self._spacing_seconds

    def _is_worth_it(self) -> bool:
        return sum(len(event.value) for event in self.waiting) >= WORTH_RECORDS

    def _has_room(self) -> bool:
        return (
            len(self.waiting) < MOST_WAITING
            and sum(len(event.value) for event in self.waiting) < self._most_records
            and sum(event.value.size for event in self.waiting) < MOST_BYTES
        )


class Ingest:
    """The partitions this worker owns and what happens to their batches.

    `group` is this worker's share of the consumer group; `new_partition` makes the empty state of a
    partition; `fail` ends the process; `on_commit` gets the rows of each transaction. `resumed` says up to
    which offset an operator lets a poisoned partition go on; without it, none stops.
    """

    def __init__(
        self,
        group: Group,
        *,
        app_id: str,
        source: Source,
        dead_letters: str,
        transactions: Transactions,
        new_partition: Callable[[int], Partition],
        partitioner: str,
        batch_events: int,
        spacing_seconds: float = 0.0,
        refusals: Refusals,
        resumed: Callable[[int], Awaitable[int | None]] | None,
        on_commit: OnCommit | None = None,
        metrics: EngineMetrics,
        fail: Callable[[BaseException], None],
    ) -> None:
        self._group = group
        self._app_id = app_id
        self._topic = source
        self._source = source.topic
        self._dead_letters = dead_letters
        self._funnel = group.funnel_table
        self._leads = group.leads_table
        self._transactions = transactions
        self._new_partition = new_partition
        self._mark = Mark(app_id, partitioner, group.funnel_table.partitions)
        self._batch_events = batch_events
        self._spacing_seconds = spacing_seconds
        self._refusals = refusals
        self._resumed = resumed
        self._on_commit = on_commit
        self._metrics = metrics
        self._fail = fail
        self.lanes: dict[int, Lane] = {}
        self._folding = asyncio.Lock()
        """One fold in a turn of the loop: between two of them, it sends and receives."""
        self._is_ready = False

    async def fence(self, assigned: Iterable[TP]) -> None:
        """Before recovery reads: drop what was lost, become the only writer of what is assigned."""
        failpoints.hit("assigned")
        self._is_ready = False
        self._metrics.rebalances.inc()
        for gauge in (self._metrics.consumer_lag, self._metrics.rejected_share, self._metrics.poisoned):
            gauge.clear()
        self._metrics.partitions.labels("active").set(0)
        own = {tp.partition for tp in assigned if tp.topic == self._source}
        for partition in self.lanes.keys() - own:
            lane = self.lanes.pop(partition)
            if lane.task is not None:
                lane.task.cancel()
            for event in lane.waiting:
                self._group.consumer.drop(event)
            # Faust may keep a changelog assigned when its source is gone; its rows went with the lane.
            self._funnel.rows.forget(partition)
            self._leads.rows.forget(partition)
        try:
            self._check_source(self._group.consumer.topic_partitions(self._source))
            await self._transactions.own(own)
            failpoints.hit("fenced")
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)
            raise

    def _check_source(self, found: int | None) -> None:
        """`found` is what a client has heard of the number of its partitions; None: nothing."""
        known = self._funnel.partitions
        if found is not None and found != known:
            raise TopicsWrong(
                f"{self._source} had {known} partitions when this worker started, and has {found} now. Leads "
                "have other home partitions now, and this worker counts nothing of the new partitions. "
                f"Nothing is lost. To count all events, {REMEDIES['count-anew']}."
            )

    async def take_over(self, source: Iterable[TP], generation: int) -> Mapping[TP, int] | None:
        """Build the state of the partitions that are new here; where each one has to be read from.

        None, and nothing is built, when the group is in another generation by then: what was restored may
        be another's already.
        """
        try:
            return await self._take_over([tp for tp in source if tp.topic == self._source], generation)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)
            raise

    async def _take_over(self, source: list[TP], generation: int) -> Mapping[TP, int] | None:
        consumer = self._group.consumer
        # Before anything else is asked: what comes later is of this topic, or its id is another one then.
        topic_id = await self._topic.topic_id(source[0].partition) if source else ""
        new = [tp.partition for tp in source if tp.partition not in self.lanes]
        held = {tp.partition: self._held(tp.partition) for tp in source}
        restored = [
            TP(table.changelog_topic_name, number) for number in new for table in (self._funnel, self._leads)
        ]
        asked = [*source, *restored]
        earliest = await consumer.earliest_offsets(*asked) if asked else {}
        ends = await consumer.highwaters(*asked) if asked else {}
        undecided = InDoubt(self._transactions, self._app_id, self._source, self._dead_letters, new)
        everywhere = [TP(self._source, number) for number in range(self._funnel.partitions)]
        await undecided.look(everywhere, restored)
        if self._group.consumer_generation_id != generation:
            return None
        missing = [why for tp in restored if (why := self._missing(tp, earliest[tp], ends[tp]))]
        for number in new if not missing else ():
            undecided.judge(number, self._positions(number))
        try:
            await undecided.decide()
        except TakenOver:
            if self._group.consumer_generation_id == generation:
                raise
        else:
            undecided.tell()
        if self._group.consumer_generation_id != generation:
            return None
        if missing:
            raise Stalled(f"{missing[0]} were restored: recovery went wrong; start again")
        found = {tp.partition: Found(self._source, topic_id, range(earliest[tp], ends[tp])) for tp in source}
        offsets = await resume_all(self._topic, held, found)
        reaches = await self._reaches(held, found)
        if self._group.consumer_generation_id != generation:
            return None
        for tp in restored:
            self._transactions.ends[tp] = ends[tp]
        for tp in source:  # without an await: a rebalance comes before all of it or after
            lane = self.lanes.get(tp.partition)
            if lane is None:
                state = self._new_partition(tp.partition)
                try:
                    state.restore(self._funnel.rows.take(tp.partition), self._leads.rows.take(tp.partition))
                except Mismatch as error:
                    raise TablesWrong(
                        f"{error}. {reaches.get(tp.partition, '')}{_advice(error.remedy)}."
                    ) from error
                state.offset = offsets.get(tp.partition)
                state.made_from(self._source, topic_id)
                knows_more = held[tp.partition] not in (None, state.written)
                lane = self.lanes[tp.partition] = Lane(state, self._batch_events, self._spacing_seconds)
                self._metrics.own(*tp)
                lane.is_stopped = self._stops(state.written)
                self._refusals.take_over(tp.partition, state.written)
                lane.task = asyncio.create_task(self._run(lane, knows_more), name=f"lane-{tp.partition}")
            if lane.state.offset is None:
                lane.state.offset = earliest[tp]
            elif lane.state.offset < earliest[tp]:
                self._accept_hole(lane, earliest[tp])
        for lane in self.lanes.values():
            if lane.durable is None:
                lane.durable = lane.state.offset
        self._tell_of(new, held)
        failpoints.hit("taken-over")
        return {tp: self.lanes[tp.partition].state.offset for tp in source}  # type: ignore[misc]

    async def _reaches(
        self, held: Mapping[int, Position | None], found: Mapping[int, Found]
    ) -> Mapping[int, str]:
        """Of tables without logs, which have to be counted anew: what of the source is still there."""
        begins = {
            number: found[number].offsets.start
            for number, position in held.items()
            if position is not None and position.settings is None and found[number].offsets
        }
        return {
            number: f"The source still holds what was published since {moment(record.timestamp_ms)}; of days "
            "before that, new tables know nothing. The former ones stay as they are: a view with "
            f"CALLFUNNEL_APP_ID={self._app_id} shows them. "
            for number, record in (await self._topic.records(begins)).items()
            if record is not None and record != GONE
        }

    def _tell_of(self, new: Iterable[int], held: Mapping[int, Position | None]) -> None:
        """What an operator should know of tables that were written before positions said all of it."""
        states = {number: self.lanes[number].state for number in new}
        named = {
            number: (state.written.topic, state.written.topic_id)
            for number, state in states.items()
            if (position := held[number]) is not None
            and (position.topic, position.topic_id) != (state.written.topic, state.written.topic_id)
        }
        if named:
            log.warning(
                "%s: partitions %s are taken for those that the tables were made from, and this is kept from "
                "now on (topic id: %s)",
                *(self._source, sorted(named), next(iter(named.values()))[1] or "the broker gives none"),
            )
        unbounded = sorted(number for number, state in states.items() if not state.is_bounded)
        if unbounded:
            log.warning(
                "%s: the tables of partitions %s take events of any time: they were begun without a bound. "
                "CALLFUNNEL_REPLAY_UNTIL gives them one",
                *(self._source, unbounded),
            )

    def _held(self, number: int) -> Position | None:
        """How far the tables go, here or in the changelogs; None where they are new, or disagree.

        Of a partition that stays nothing has to be witnessed: each of its batches is of the topic.
        """
        if number in self.lanes:
            return replace(self.lanes[number].state.written, witness=None)
        one, other = (row for _, row in self._positions(number).values())
        return None if one is None or one != other else decode_position(one)

    def _positions(self, number: int) -> Positions:
        return {
            (table.changelog_topic_name, number): (key, table.rows.row(number, key))
            for table, key in ((self._funnel, POSITION_KEY), (self._leads, LEADS_POSITION_KEY))
        }

    def _missing(self, tp: TP, first: int, end: int) -> str | None:
        """What was not restored of a changelog, in words; None when nothing.

        It is fenced: what it holds now, `first` up to `end`, is all there will be to read.
        """
        table = self._funnel if tp.topic == self._funnel.changelog_topic_name else self._leads
        copy = table.rows.copy(tp)
        if first < end and (copy.start > first or copy.stop < end):
            return (
                f"{tp.topic}/{tp.partition} holds offsets {first} to {end - 1}, but {copy.start} to "
                f"{copy.stop - 1}"
            )
        return None

    def ready(self, source: Iterable[TP]) -> None:
        """Recovery is over and the source is flowing."""
        for number, lane in self.lanes.items():
            lane.progress_at = time.monotonic()
            self._refusals.show(number, lane.state.written)
        self._is_ready = True
        failpoints.hit("ready")
        owned = sorted(tp.partition for tp in source if tp.topic == self._source)
        self._metrics.partitions.labels("active").set(len(owned))
        log.info("ready: partitions %s", owned)

    def not_ready(self) -> str | None:
        """What keeps this worker from folding events, in words; None when nothing does."""
        return None if self._is_ready else "the worker is joining its group or restoring its tables"

    def stopped(self) -> set[TP]:
        """The partitions that stand still until an operator lets them go on."""
        return {TP(self._source, number) for number, lane in self.lanes.items() if lane.is_stopped}

    def why_stopped(self) -> str | None:
        """What stands still, and how it goes on, in words; None when nothing does."""
        return "; ".join(self._why_stopped(lane) for lane in self.lanes.values() if lane.is_stopped) or None

    def _why_stopped(self, lane: Lane) -> str:
        number, at = lane.state.number, lane.state.written
        return (
            f"{self._source}/{number} is stopped at offset {lane.state.offset} (CALLFUNNEL_DLQ_STOP): "
            f"{at.rejected_share:.0%} of its newest records were rejected; "
            f"`callfunnel source resume --partition {number}` lets it go on (remedy resume)"
        )

    def _stops(self, at: Position) -> bool:
        return self._resumed is not None and at.poison == "found"

    async def close(self) -> None:
        """After the last batch: end the lanes and give the partitions up."""
        for lane in self.lanes.values():
            if lane.task is not None:
                lane.task.cancel()
        await self._transactions.close()
        await self._topic.close()

    def rows(self) -> tuple[int, int]:
        """Rows held in the funnel and in the leads table."""
        sizes = [lane.state.tables.sizes() for lane in self.lanes.values()]
        return sum(rows for rows, _ in sizes), sum(leads for _, leads in sizes)

    @property
    def deriving(self) -> int:
        """How many partitions have rows of another fold, and derive them anew."""
        return sum(lane.state.is_of_another_fold for lane in self.lanes.values())

    def lags(self) -> Mapping[TP, int]:
        """Records behind the end of each owned source partition; those are left out of which nobody knows."""
        return self._behind(self._group.answers.end) if self._is_ready else {}

    def _behind(self, end_of: Callable[[TP], int | None]) -> Mapping[TP, int]:
        behind = {}
        for partition, lane in self.lanes.items():
            tp = TP(self._source, partition)
            end = end_of(tp)
            if end is not None and lane.durable is not None:
                behind[tp] = max(0, end - lane.durable)
        return behind

    def stalled(self, now: float, seconds: float) -> str | None:
        """What has had work but no progress for so long, in words; None when nothing. `now` is monotonic.

        What lies behind a publisher's open transaction is no work yet, and what is damaged on the broker is
        not this worker's. While one partition derives its rows, its batches wait, and those of others behind
        them: none of that is a stall.
        """
        if self.deriving:
            for lane in self.lanes.values():
                lane.progress_at = now
            return None
        for tp, lag in self._behind(self._group.consumer.stable_end).items() if self._is_ready else ():
            lane = self.lanes[tp.partition]
            if not lag or lane.is_stopped or self._group.consumer.is_damaged(tp):
                lane.progress_at = now
            elif now - lane.progress_at > seconds:
                return f"{tp.topic}/{tp.partition} is {lag} records behind and does not move"
        return None

    def reads_on(self, partition: int) -> None:
        """A large record of the partition is just being skipped: that is progress, too."""
        if lane := self.lanes.get(partition):
            lane.progress_at = time.monotonic()

    async def take(self, event: EventT) -> None:
        """Give a batch to its partition; waits while enough of them wait there."""
        batch: MicroBatch = event.value
        lane = self.lanes.get(batch.partition)
        if lane is None or batch.generation != self._group.consumer_generation_id:
            self._group.consumer.drop(event)  # revoked since it was fetched; the new owner reads it again
            return
        if not await lane.put(event):
            self._group.consumer.drop(event)
            return
        failpoints.hit("delivered")

    async def _run(self, lane: Lane, knows_more: bool) -> None:
        """Until it is cancelled. `knows_more`: than the position of its tables says."""
        try:
            if lane.state.is_of_another_fold:
                await self._derive(lane)
            await self._sweep(lane)
            if knows_more or lane.owes:
                await self._write_down(lane)
            while True:
                if self._stops(lane.state.written):
                    await self._stand_still(lane)
                events = await lane.get()
                first, *following = [event.value for event in events]
                if await self._process(lane, first.joined(following) if following else first):
                    for event in events:
                        event.ack()
                    failpoints.hit("acknowledged")
                else:
                    for event in events:
                        self._group.consumer.drop(event)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._fail(error)

    async def _derive(self, lane: Lane) -> None:
        """Make the rows anew from the logs; until the last part is written, those of before are in force.

        It goes in steps: millions of leads at once would block the event loop.
        """
        state, started = lane.state, time.monotonic()
        at = f"{self._source}/{state.number}"
        log.warning("%s: deriving the rows anew from the logs of the leads: %s", at, state.change)
        await self._sweep(lane)  # what a derivation left that did not come to its end
        left, told = None, started
        while left != 0:
            async with self._folding:
                left = state.derive(DERIVED_AT_ONCE)
            lane.progress_at = time.monotonic()
            if lane.progress_at - told > TELL_SECONDS:
                told = lane.progress_at
                log.info("%s: %s leads are left to derive", at, left)
            await asyncio.sleep(0)
        for part in state.derived(ROWS_AT_ONCE):
            await self._write_part(lane, part)
        await self._write_part(lane, state.turn())
        log.warning("%s: the derived rows are in force after %.1f s", at, time.monotonic() - started)

    async def _sweep(self, lane: Lane) -> None:
        """Delete the rows that are not in force."""
        while (part := lane.state.sweep(ROWS_AT_ONCE)) is not None:
            await self._write_part(lane, part)

    async def _write_part(self, lane: Lane, part: Effects) -> None:
        number = lane.state.number
        await asyncio.shield(self._write(number, part))
        lane.progress_at = time.monotonic()

    async def _write_down(self, lane: Lane) -> None:
        """Let the position say what is known of its tables: until it does, nothing protects them.

        A rebalance does not wait for it, but must not break it off: its producer could not be stopped.
        """
        state = lane.state
        effects = state.apply([], [], [], state.offset)  # type: ignore[arg-type]
        await asyncio.shield(self._write(state.number, effects))
        lane.durable, lane.owes = state.offset, False

    async def _write(
        self, number: int, effects: Effects, elsewhere: dict[At, Iterable[Record]] | None = None
    ) -> None:
        """What changes in the tables of a partition, and what goes to other topics, in one transaction."""
        funnel = self._funnel.changelog_topic_name, number
        after = self._transactions.ends.get(funnel)
        written = await self._transactions.write(number, self._rows(number, effects) | (elsewhere or {}))
        for table in (self._funnel, self._leads):
            table.rows.wrote(number, written[table.changelog_topic_name, number].stop - 1)
        if self._on_commit and after is not None:
            self._on_commit(Committed(number, after, written[funnel], effects.funnel))

    async def _stand_still(self, lane: Lane) -> None:
        """Keep a poisoned partition where it is until an operator lets it go on; the others do not notice."""
        tp = TP(self._source, lane.state.number)
        for event in await lane.stop():
            self._group.consumer.drop(event)
        self._group.consumer.pause_partitions({tp})
        log.error("%s. The other partitions go on; nothing is lost", self._why_stopped(lane))
        while not await self._may_go_on(lane, tp):  # noqa: ASYNC110  (Kafka has to be asked)
            await asyncio.sleep(LOOK_SECONDS)
        # No await from here on: during a recovery, nothing of the source may flow.
        lane.state.accept_poison()
        lane.is_stopped = False
        self._group.consumer.resume_partitions({tp})
        log.info("%s/%s goes on from offset %s, as an operator asked", *tp, lane.state.offset)

    async def _may_go_on(self, lane: Lane, tp: TP) -> bool:
        """Whether an operator lets it go on; then its next batch is the one behind its state."""
        assert self._resumed is not None
        try:
            until = await self._resumed(tp.partition)
            lane.trouble = ""
            if until is None:
                return False
            if until < lane.state.offset:  # type: ignore[operator]
                # It was said of an earlier stop, or the topic ends before the records that were counted.
                self._check_end(lane, (await self._group.consumer.highwaters(tp))[tp])
                return False
            await self._group.consumer.seek(tp, lane.state.offset)
        except (KafkaError, OSError, TimeoutError) as error:
            if repr(error) != lane.trouble:
                lane.trouble = repr(error)
                log.warning(
                    "%s/%s stays stopped: whether it may go on is not known (%s). That takes a broker that "
                    "answers, and the right to read the consumer group %s",
                    *(*tp, lane.trouble, resume_group(self._app_id)),
                )
            return False
        return self._is_ready

    async def _process(self, lane: Lane, fetched: MicroBatch) -> bool:
        """Apply what is new of a batch; False when it has to be fetched again."""
        state = lane.state
        batch = await self._continuing(lane, fetched)
        if batch is None:
            return False
        if batch.end <= state.offset:  # type: ignore[operator]
            # Known already, or other records under known offsets: then the topic ends before them.
            tp = TP(batch.topic, batch.partition)
            self._check_end(lane, (await self._group.consumer.highwaters(tp))[tp])
            self._metrics.events_replayed.inc(batch.records)
            return True
        if batch.start < state.offset:  # type: ignore[operator]
            whole = batch.records
            batch = batch.since(state.offset)  # type: ignore[arg-type]
            self._metrics.events_replayed.inc(whole - batch.records)
        await self._fold(lane, batch)
        return True

    async def _fold(self, lane: Lane, batch: MicroBatch) -> None:
        """Fold a batch and write it. A batch without records is written too: it moves the position over
        transaction markers, which a view would otherwise take for records that wait to be counted."""
        state = lane.state
        started, before = time.perf_counter(), state.written
        await self._check_topic(lane)
        async with self._folding:
            self._check_source(self._group.consumer.topic_partitions(self._source))
            stuck = self._mark.stuck(batch)
            effects = state.apply(
                batch.values,
                batch.keys,
                batch.timestamps,
                batch.end,
                stuck,
                unreadable=batch.records - len(batch),
                witness=batch.witness(),
            )
        failpoints.hit("folded")
        if effects.foreign:
            self._check_source(await self._transactions.partitions(batch.partition, self._source))
        await self._write(batch.partition, effects, self._elsewhere(batch, effects))
        lane.durable, lane.owes = batch.end, False
        lane.progress_at = time.monotonic()
        self._observe(batch, effects, time.perf_counter() - started)
        self._refusals.observe(batch, effects.rejected, before, state.written)

    async def _check_topic(self, lane: Lane) -> None:
        """What has come is of the topic that the tables are made from: asked after it came, ids say so."""
        position = lane.state.written
        if not position.topic_id:
            return
        topic_id = await self._topic.topic_id(lane.state.number)
        if topic_id not in ("", position.topic_id):
            raise another_id(lane.state.number, position, self._source, topic_id)

    async def _continuing(self, lane: Lane, batch: MicroBatch) -> MicroBatch | None:
        """The batch, when it does not leave a hole behind the state; else None, after seeking back."""
        expected: int = lane.state.offset  # type: ignore[assignment]
        if batch.start <= expected:
            lane.seeks = 0
            return batch
        tp = TP(batch.topic, batch.partition)
        earliest = (await self._group.consumer.earliest_offsets(tp))[tp]
        if earliest > expected:
            self._accept_hole(lane, earliest)
            if batch.start <= earliest:
                return batch
        lane.seeks += 1
        if lane.seeks > 20:
            raise TablesWrong(
                f"{tp.topic}/{tp.partition}: the broker has offsets from {earliest} on, "
                f"but never delivers {expected}"
            )
        log.warning("%s/%s: delivered from %s, expected %s: fetching again", *tp, batch.start, expected)
        await self._group.consumer.seek(tp, lane.state.offset)
        return None

    def _check_end(self, lane: Lane, end: int) -> None:
        offset, number = lane.state.offset, lane.state.number
        if offset > end:  # type: ignore[operator]
            raise TablesWrong(
                f"the tables of {self._source}/{number} go up to offset {offset}, but the topic ends "
                f"at {end}: it was truncated or created anew. To count its events from the start, "
                f"{REMEDIES['count-anew']}."
            )

    def _accept_hole(self, lane: Lane, earliest: int) -> None:
        """Retention took records before they were read: go on, and say how much is missing at most."""
        missing = earliest - lane.state.offset  # type: ignore[operator]
        self._metrics.source_gap_events.labels(str(lane.state.number)).inc(missing)
        log.error(
            "%s/%s: offsets %s to %s are gone from the topic (retention): at most %s events were not counted",
            *(self._source, lane.state.number, lane.state.offset, earliest - 1, missing),
        )
        lane.state.lose(earliest, int(time.time() * 1000))
        lane.owes = True

    def _elsewhere(self, batch: MicroBatch, effects: Effects) -> dict[At, Iterable[Record]]:
        """The dead letters of a batch, and the events that are sent home."""
        number, records = batch.partition, dict[At, Iterable[Record]]()
        if effects.rejected or batch.lumps:
            received_ms = int(time.time() * 1000)
            records[self._dead_letters, number] = dead_letters(
                batch, effects.rejected, received_ms, self._app_id
            )
        rerouted: defaultdict[At, list[Record]] = defaultdict(list)
        for i, home in effects.foreign:
            parts, headers, timestamp = sent_home(batch, i)
            rerouted[self._source, home].append((parts, self._mark.added_to(headers), timestamp))
        return records | rerouted

    def _rows(self, number: int, effects: Effects) -> dict[At, Iterable[Record]]:
        no_headers: list[tuple[str, bytes | None]] = []
        return {
            (table.changelog_topic_name, number): zip(rows, repeat(no_headers), repeat(None))
            for table, rows in ((self._funnel, effects.funnel), (self._leads, effects.leads))
        }

    def _observe(self, batch: MicroBatch, effects: Effects, seconds: float) -> None:
        metrics = self._metrics
        metrics.events_consumed.labels(batch.topic, str(batch.partition)).inc(batch.records)
        metrics.events_duplicate.inc(effects.duplicates)
        metrics.events_conflicting.inc(effects.conflicting)
        metrics.events_late.inc(effects.late)
        metrics.events_rerouted.inc(len(effects.foreign))
        metrics.batch_events.observe(len(batch))
        metrics.batch_seconds.observe(seconds)
        if effects.newest_ms >= 0:
            metrics.event_delay_seconds.observe(max(0.0, time.time() - effects.newest_ms / 1000))


def _advice(remedy: str) -> str:
    told = str(REMEDIES[remedy])
    return told[0].upper() + told[1:] if remedy == "fold-adopt" else f"To build the tables anew, {told}"

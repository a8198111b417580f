"""One worker of the model: the real ingest, ledger, tables and recovery, in a process that can die anywhere.

What is modelled is what surrounds them: Faust's stream and rebalance listener, the consumer, the producer.
Each call to the broker is a turn, where the schedule may let others act, lose the answer, or end the process.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from itertools import islice
from types import SimpleNamespace
from typing import Any

from faust.types import TP
from model.kafka import Entry, Kafka, Name, Transaction

from agents.hanging import Tail
from agents.poison import Refusals
from agents.recovery import Recovery
from agents.tables import RestoredRows
from schemas.codec import Decoder, Limits
from streams.engine import Partition
from streams.panes import resolutions
from streams.partitioning import homes
from streams.poison import Tolerance
from streams.tables import Fold

SOURCE, DEAD_LETTERS = Name("call events"), Name("dead letters")
FUNNEL, LEADS = Name("funnel"), Name("leads")
APP = "model"

DECODER = Decoder(Limits(clock="event"))
FOLD = Fold(
    hangup_ms=15_000,
    late_ms=600_000,
    lead_events=1000,
    timezone="UTC",
    partitioner="murmur2",
    resolutions=resolutions(6, 3, 400),
)
TOLERANCE = Tolerance(window=2, max_share=0.5)


class RebalanceAgain(Exception):
    """As Faust's: recovery begins anew."""


class Ignored:
    """A metric, or a label of one."""

    def labels(self, *_: str) -> "Ignored":
        return self

    def clear(self) -> None: ...
    def inc(self, n: float = 1) -> None: ...
    def set(self, n: float) -> None: ...
    def observe(self, n: float) -> None: ...


class Metrics:
    def __getattr__(self, name: str) -> Ignored:
        return IGNORED


IGNORED = Ignored()


class Gaps(Ignored):
    """The count of events that are gone from the source."""

    def __init__(self, count: Callable[[int, int], None], partition: int = -1) -> None:
        self._count = count
        self._partition = partition

    def labels(self, *labels: str) -> "Gaps":
        return Gaps(self._count, int(labels[0]))

    def inc(self, n: float = 1) -> None:
        self._count(self._partition, int(n))


class RecordBatch:
    """A batch of a producer: three records, so that a transaction has several."""

    def __init__(self) -> None:
        self.records: list[Any] = []

    def fill(self, records: Iterator[Any], now_ms: int) -> Any:
        self.records = list(islice(records, 3))
        return next(records, None)

    def record_count(self) -> int:
        return len(self.records)


class Answer:
    """What the broker says to a request, for whoever waits for it."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        self._ask = ask

    def __await__(self) -> Any:
        return self._ask().__await__()


class Producer:
    """aiokafka's producer. What is sent reaches the broker at once, or only when its answer is waited for.

    In a partition, what is sent later arrives later.
    """

    def __init__(self, *, worker: "Worker", transactional_id: str, **_: Any) -> None:
        self._worker = worker
        self._kafka = worker.kafka
        self._name = transactional_id
        self._number = int(transactional_id.split("-")[1])
        self._epoch = 0
        self._transaction: Transaction | None = None
        self._on_their_way: set[TP] = set()

    async def start(self) -> None:
        def init() -> None:
            self._epoch = self._kafka.init_producer(self._name)

        await self._worker.call("init " + self._name, init)

    async def stop(self) -> None:
        await self._worker.turn("stop " + self._name)

    def create_batch(self) -> RecordBatch:
        return RecordBatch()

    async def begin_transaction(self) -> None:
        def begin() -> None:
            self._transaction = self._kafka.begin(self._name, self._epoch)
            self._on_their_way.clear()

        await self._worker.call("begin " + self._name, begin)

    async def add_partitions(self, partitions: Any) -> None:
        transaction = self._transaction
        assert transaction is not None
        tps = [TP(*partition) for partition in partitions]
        await self._worker.call(
            "add partitions to " + self._name, lambda: self._kafka.add(self._epoch, transaction, tps)
        )

    async def send_batch(self, batch: RecordBatch, topic: str, *, partition: int) -> Any:
        tp = TP(topic, partition)
        transaction = self._transaction
        assert transaction is not None

        def append() -> Any:
            transaction.holes.setdefault(self._number, self._worker.gone(self._number))
            first = self._kafka.append(self._epoch, transaction, tp, batch.records)
            return SimpleNamespace(topic=topic, partition=partition, offset=first)

        name = f"send {topic}/{partition} in {self._name}"
        if tp in self._on_their_way or self._worker.schedule.flip(0.3):
            self._on_their_way.add(tp)
            return Answer(lambda: self._worker.call(name, append))
        answer = await self._worker.call(name, append)
        return Answer(lambda: self._worker.turn(name, answer))

    async def commit_transaction(self) -> None:
        transaction = self._transaction
        assert transaction is not None

        def commit() -> None:
            before = self._worker.schedule.position(self._number)
            self._kafka.commit(self._epoch, transaction)
            self._worker.schedule.check_stop(self._number, before)

        await self._worker.call("commit " + self._name, commit)

    async def abort_transaction(self) -> None:
        transaction = self._transaction
        assert transaction is not None

        def abort() -> None:
            self._kafka.check(self._name, self._epoch)
            transaction.is_by_hand = True
            self._kafka.abort(self._name)

        await self._worker.call("abort " + self._name, abort)


async def hanging(
    client: Mapping[str, Any], partitions: Iterable[Any], headers: Collection[str] = ()
) -> Mapping[Any, Tail]:
    """What hangs, asked by clients of its own."""
    worker: Worker = client["worker"]
    logs = {at: worker.kafka.logs[TP(*at)] for at in partitions}
    ends = await worker.call("asks for the ends of logs", lambda: {at: log.end for at, log in logs.items()})

    def ask() -> Mapping[Any, Tail]:
        return {
            at: _tail([one for one in log.entries if log.stable_end <= one.offset < ends[at]], headers)
            for at, log in logs.items()
            if log.stable_end < ends[at]
        }

    return await worker.call("asks what hangs", ask)  # type: ignore[no-any-return]


async def last(client: Mapping[str, Any], at: Any, find: Callable[[Any], int | None]) -> int | None:
    """What is found in the last committed record that anything is found in."""
    worker: Worker = client["worker"]
    log = worker.kafka.logs[TP(*at)]

    def ask() -> int | None:
        found = (find(entry.headers) for entry in reversed(log.committed(log.start, log.end)))
        return next((one for one in found if one is not None), None)

    return await worker.call(f"asks for the last of {at[0]}/{at[1]}", ask)  # type: ignore[no-any-return]


def _tail(entries: list[Entry], headers: Collection[str]) -> Tail:
    records = [entry for entry in entries if not entry.is_marker]
    found = dict.fromkeys(tuple(one for one in entry.headers if one[0] in headers) for entry in records)
    return Tail(records[-1].key, records[-1].value, tuple(found)) if records else Tail()


class Worker:
    """A process, and Faust in it. To the code under test it is the app, the consumer and the recovery."""

    def __init__(self, schedule: Any, kafka: Kafka, number: int, partitions: int) -> None:
        self.schedule = schedule
        self.kafka = kafka
        self.name = f"w{number}"
        self.is_paused = self.is_dead = self.is_judged = self.is_restoring = self.is_suspended = (
            self.had_error
        ) = False
        self.reason: BaseException | None = None
        self.holes: dict[int, list[tuple[int, int]]] = {}
        self.began: dict[int, int] = {}
        self.generations: asyncio.Queue[tuple[int, frozenset[TP]]] = asyncio.Queue()
        self.inbox: asyncio.Queue[Any] = asyncio.Queue()
        self.positions: dict[TP, int] = {}
        self.flowing: set[TP] = set()
        self.unacked: list[Any] = []
        self.acked: dict[TP, int] = {}
        self.assigned: frozenset[TP] = frozenset()
        self._recover_now = asyncio.Event()
        self._recovering = 0
        self._buffer: list[Any] = []

        # What the app is asked for.
        self.partitions = partitions
        self.conf = SimpleNamespace(id=APP, broker_request_timeout=30.0)
        self.app = self.consumer = self.assignor = self.flow_control = self.tables = self._fetcher = self
        self.consumer_generation_id = 0
        self.on_rebalance_complete = SimpleNamespace(send=self._nothing)
        self.funnel_table, self.leads_table = (self._table(name) for name in (FUNNEL, LEADS))
        self.completed = asyncio.Event()
        self.actives_for_table = self.standbys_for_table = {}
        metrics = Metrics()
        metrics.source_gap_events = Gaps(self._gap)  # type: ignore[attr-defined]
        self.log = logging.getLogger("model")
        self.ingest = schedule.rules.ingest(
            self,
            source=SOURCE,
            dead_letters=DEAD_LETTERS,
            ledger=schedule.rules.ledger(APP, {"worker": self}, 15.0),
            batch_events=8,
            new_partition=lambda number: Partition(
                number, FOLD, DECODER, homes(partitions, "murmur2"), tolerance=TOLERANCE
            ),
            refusals=Refusals(metrics, SOURCE, DEAD_LETTERS, 0.5),  # type: ignore[arg-type]
            resumed=self._resumed if schedule.stops else None,
            metrics=metrics,  # type: ignore[arg-type]
            fail=self.fail,
        )
        self.tasks = [
            asyncio.create_task(self._watch(run)) for run in (self._agent, self._listen, self._recover)
        ]

    def _table(self, name: str) -> Any:
        table = SimpleNamespace(
            name=name, changelog_topic_name=name, partitions=self.partitions, fail=self.fail
        )
        table.rows = RestoredRows("changelog://", self, table)  # type: ignore[arg-type]
        return table

    # The process

    def fail(self, error: BaseException) -> None:
        """The process ends itself: nothing of it happens after."""
        if not self.is_dead:
            self.reason = error
            self.die()

    def die(self) -> None:
        self.is_dead = True
        self.schedule.note(f"{self.name} ends: {self.reason!r}")
        for task in [*self.tasks, *(lane.task for lane in self.ingest.lanes.values())]:
            if task is not None:
                task.cancel()

    async def _watch(self, service: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """A crash inside Faust ends the process."""
        try:
            await service()
        except Exception as error:
            self.fail(error)

    async def turn(self, what: str, answer: Any = None) -> Any:
        """Others may act before this goes on."""
        if self.is_dead:
            raise asyncio.CancelledError
        if self.is_paused or self.schedule.parks():
            await self.wait(what)
        return answer

    async def wait(self, what: str) -> None:
        go: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.schedule.parked.append((self, what, go))
        await go
        if self.is_dead:
            raise asyncio.CancelledError

    async def call(self, what: str, act: Callable[[], Any]) -> Any:
        """A request to the broker, which may never arrive, and its answer, which may not either."""
        await self.turn(what)
        self.schedule.note(f"{self.name} {what}")
        await self.schedule.fault(self, what, "before")
        answer = act()
        await self.schedule.fault(self, what, "after")
        return answer

    def gone(self, partition: int) -> list[tuple[int, int]]:
        """The source offsets that were gone, says this worker: holes, and what was before the first start."""
        holes = list(self.holes.get(partition, ()))
        if self.schedule.position(partition) is None and partition in self.began:
            holes.append((0, self.began[partition]))
        return holes

    # The agent

    async def _agent(self) -> None:
        while True:
            event = await self.inbox.get()
            if event.value.generation != self.consumer_generation_id:
                continue
            self.unacked.append(event.message)
            await self.ingest.take(event)

    def deliver(self, tp: TP, count: int) -> None:
        """The fetcher hands over the next records of a source partition."""
        log = self.kafka.logs[tp]
        start = self.positions[tp]
        if not log.start <= start <= log.end:
            start = log.start  # out of range: reset to the earliest
        batch = self.kafka.fetch(tp, start, start + count, self.consumer_generation_id)
        self.positions[tp] = batch.end
        if batch.end > batch.start:
            self.schedule.note(f"{self.name} gets {batch}")
            message = (tp, batch.end)
            self.inbox.put_nowait(
                SimpleNamespace(value=batch, message=message, ack=lambda: self._ack(message))
            )

    def _ack(self, message: tuple[TP, int]) -> None:
        tp, end = message
        self.acked[tp] = end
        self.unacked.remove(message)

    def drop(self, event: Any) -> None:
        self.unacked.remove(event.message)

    # The consumer

    async def earliest_offsets(self, *tps: TP) -> Mapping[TP, int]:
        def ask() -> Mapping[TP, int]:
            starts = {tp: self.kafka.logs[tp].start for tp in tps}
            for tp, start in starts.items():
                if tp.topic == SOURCE and tp.partition not in self.ingest.lanes:
                    self.began[tp.partition] = start
            return starts

        return await self.call("asks for starts", ask)  # type: ignore[no-any-return]

    async def highwaters(self, *tps: TP) -> Mapping[TP, int]:
        return await self.call(  # type: ignore[no-any-return]
            "asks for ends", lambda: {tp: self.kafka.logs[tp].stable_end for tp in tps}
        )

    def topic_partitions(self, topic: str) -> int:
        return self.partitions

    def stable_end(self, tp: TP) -> int:
        return self.kafka.logs[tp].stable_end

    async def seek(self, tp: TP, offset: int) -> None:
        await self.turn("seeks")
        self.positions[tp] = offset

    async def seek_wait(self, positions: Mapping[TP, int]) -> None:
        await self.turn("seeks")
        self.positions.update(positions)

    async def perform_seek(self) -> None:
        def ask() -> Mapping[TP, int]:
            return {tp: self.kafka.group_offsets.get(tp, self.kafka.logs[tp].start) for tp in self._source()}

        self.positions.update(await self.call("asks for the group's offsets", ask))

    def assignment(self) -> frozenset[TP]:
        return self.assigned

    def assigned_actives(self) -> set[TP]:
        return {tp for tp in self.assigned if tp.topic != SOURCE}

    def assigned_standbys(self) -> set[TP]:
        return set()

    def pause_partitions(self, tps: set[TP]) -> None:
        self.flowing -= tps

    async def _resumed(self, partition: int) -> int | None:
        """Up to where an operator lets the partition go on."""
        await self.wait(f"asks whether {partition} may go on")
        return await self.call(  # type: ignore[no-any-return]
            "asks what was resumed", lambda: self.schedule.resumed.get(partition)
        )

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        self.flowing |= self.assigned.intersection(tps)

    def _source(self) -> list[TP]:
        return sorted(tp for tp in self.assigned if tp.topic == SOURCE)

    # Rebalances

    async def _listen(self) -> None:
        while True:
            generation, assigned = await self.generations.get()
            await self.turn("revokes")
            self.flowing = set()
            self.is_suspended = True
            self._flush()
            self._clear()
            while self.unacked:
                await self.wait(f"waits for {self.unacked}")
            while not self.generations.empty():
                generation, assigned = self.generations.get_nowait()
            revoked, newly = self.assigned - assigned, assigned - self.assigned
            self.assigned = assigned
            self.flowing &= assigned
            self.consumer_generation_id = generation
            self.positions = {tp: self.kafka.logs[tp].start for tp in self._source()}
            self.schedule.note(f"{self.name} is assigned {self._source()} in generation {generation}")
            await self.turn("is assigned")
            await self.ingest.fence(assigned)
            for number in {*self.holes, *self.began} - self.ingest.lanes.keys():
                self.holes.pop(number, None)
                self.began.pop(number, None)
            self._flush()
            for table in (self.funnel_table, self.leads_table):
                await table.rows.on_rebalance(set(assigned), set(revoked), set(newly), generation)
                await self.turn("rebalances its tables")
            self._recovering = generation
            self._recover_now.set()

    async def _recover(self) -> None:
        while True:
            await self._recover_now.wait()
            self._recover_now.clear()
            self.is_restoring = True
            try:
                await self._restore()
                await Recovery.on_recovery_completed(self, self._recovering)  # type: ignore[arg-type]
            except RebalanceAgain:
                continue
            self.is_restoring = False

    async def _restore(self) -> None:
        self.is_suspended = False
        self._flush()
        actives = sorted(self.assigned_actives())
        ends = await self._wait(self.highwaters(*actives))
        for tp in actives:
            table = self.funnel_table if tp.topic == FUNNEL else self.leads_table
            through = table.rows.persisted_offset(tp)
            at = self.kafka.logs[tp].start if through is None else through + 1
            if self.schedule.errs("recovery begins late"):
                at += 1
            while at < ends[tp]:
                if self.schedule.errs("recovery ends early"):
                    return
                await self._wait(self.turn("restores"))
                if tp not in self.assigned:
                    await self._rebalance_again()
                batch = self.kafka.fetch(tp, at, at + self.schedule.size(12), self._recovering)
                if batch.end == at:
                    break
                at = batch.end
                self._buffer.append((table, SimpleNamespace(message=SimpleNamespace(tp=tp), value=batch)))
                if self.is_suspended:
                    await self._rebalance_again()
                if len(self._buffer) >= 4:
                    self._flush()
        self._flush()

    async def _rebalance_again(self) -> None:
        await self._recover_now.wait()
        raise RebalanceAgain

    def _flush(self) -> None:
        buffer, self._buffer = self._buffer, []
        for table, event in buffer:
            table.rows.apply_changelog_batch([event], None, None)

    async def _wait(self, doing: Any, timeout: float | None = None) -> Any:  # noqa: ASYNC109  (Faust's)
        result = await doing
        if self._recover_now.is_set():
            raise RebalanceAgain
        return result

    # What else recovery calls

    def resume(self) -> None:
        self._clear()

    def _clear(self) -> None:
        while not self.inbox.empty():
            self.inbox.get_nowait()

    def values(self) -> tuple[Any, ...]:
        return ()

    async def _nothing(self) -> None: ...

    async def maybe_start(self) -> None: ...

    def _set_recovery_ended(self) -> None: ...
    def resume_flow(self) -> None: ...
    def on_actives_ready(self) -> None: ...
    def on_standbys_ready(self) -> None: ...
    def on_rebalance_end(self) -> None: ...

    def _is_changelog_tp(self, tp: TP) -> bool:
        return tp.topic != SOURCE

    def _gap(self, partition: int, missing: int) -> None:
        offset = self.ingest.lanes[partition].state.offset
        assert offset is not None
        self.schedule.note(f"{self.name} counts a hole of {missing} at {SOURCE}/{partition} {offset}")
        self.holes.setdefault(partition, []).append((offset, offset + missing))

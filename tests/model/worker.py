"""One worker of the model: the real ingest, transactions, tables and recovery, in a process that may die.

What is modelled is what surrounds them: Faust's stream and rebalance listener, the consumer, the producer.
Each call to the broker is a turn, where the schedule may let others act, lose the answer, or end the process.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from itertools import islice
from types import SimpleNamespace
from typing import Any, NamedTuple

from faust.types import TP
from model.kafka import Entry, Kafka, Name, Transaction
from msgspec.structs import replace

from callfunnel.agents.engine.adopt import adopt
from callfunnel.agents.engine.poison import Refusals
from callfunnel.agents.engine.source import GONE, Found
from callfunnel.agents.kafka.hanging import Tail
from callfunnel.agents.kafka.recovery import Recovery
from callfunnel.agents.kafka.tables import RestoredRows
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams.by_definition import DefinedTables
from callfunnel.streams.engine import Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.panes import resolutions
from callfunnel.streams.poison import Tolerance
from callfunnel.streams.rows import Position, Witness, encode_position
from callfunnel.streams.tables import Effects

SOURCE = Name("call events")

DECODER = Decoder(Limits(clock="event"))
FOLD = Fold(
    hangup_ms=15_000,
    late_ms=600_000,
    lead_events=1000,
    timezone="UTC",
    partitioner="murmur2",
    resolutions=resolutions(6, 3, 400),
)
SETTINGS = ((15_000, "UTC"), (0, "UTC"), (14_999, "Europe/Berlin"))
"""Hang-up threshold in ms and time zone: what an operator changes, one after the other."""
TOLERANCE = Tolerance(window=2, max_share=0.5)


def funnel_of(app: str) -> Name:
    return Name(f"funnel of {app}")


def leads_of(app: str) -> Name:
    return Name(f"leads of {app}")


class App(NamedTuple):
    """What the workers of an app know: its topics, and the source as it was when they started."""

    name: str
    partitions: int
    partitioner: str
    settings: int = 0
    """Which of `SETTINGS` its workers are started with."""

    @property
    def funnel(self) -> Name:
        return funnel_of(self.name)

    @property
    def leads(self) -> Name:
        return leads_of(self.name)

    @property
    def dead_letters(self) -> Name:
        return Name(f"dead letters of {self.name}")

    @property
    def fold(self) -> Fold:
        hangup_ms, timezone = SETTINGS[self.settings]
        return replace(FOLD, partitioner=self.partitioner, hangup_ms=hangup_ms, timezone=timezone)


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

    def own(self, topic: str, partition: int) -> None: ...


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

    def __init__(self, client: None, *, worker: "Process", transactional_id: str, **_: Any) -> None:
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

    async def partitions_of(self, topic: str) -> int:
        """A broker may still tell the former number of partitions."""

        def ask() -> int:
            lags = not self._worker.schedule.is_calm and self._worker.schedule.flip(0.2)
            return self._worker.started_as.partitions if lags else self._worker.schedule.partitions

        return await self._worker.call("asks for the number of partitions", ask)

    def create_batch(self, compressor: Any) -> RecordBatch:
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
            if transaction.holes is None:
                transaction.holes = self._worker.gone(self._number)
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
            before = self._worker.schedule.position(self._worker.started_as, self._number)
            self._kafka.commit(self._epoch, transaction)
            self._worker.schedule.check_stop(self._worker.started_as, self._number, before)

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
    worker: Process = client["worker"]
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
    worker: Process = client["worker"]
    log = worker.kafka.logs[TP(*at)]

    def ask() -> int | None:
        found = (find(entry.headers) for entry in reversed(log.committed(log.start, log.end)))
        return next((one for one in found if one is not None), None)

    return await worker.call(f"asks for the last of {at[0]}/{at[1]}", ask)  # type: ignore[no-any-return]


def _tail(entries: list[Entry], headers: Collection[str]) -> Tail:
    records = [entry for entry in entries if not entry.is_marker]
    found = dict.fromkeys(tuple(one for one in entry.headers if one[0] in headers) for entry in records)
    return Tail(records[-1].key, records[-1].value, tuple(found)) if records else Tail()


async def last_positions(
    client: Mapping[str, Any], topic: str, key: bytes, partitions: Iterable[int]
) -> Mapping[int, bytes | None]:
    """The newest committed position of each partition of a changelog."""
    process: Process = client["worker"]
    logs = {number: process.kafka.logs[TP(topic, number)] for number in partitions}

    def ask() -> Mapping[int, bytes | None]:
        rows = {
            n: [one for one in log.committed(log.start, log.end) if one.key == key] for n, log in logs.items()
        }
        return {number: found[-1].value if found else None for number, found in rows.items()}

    return await process.call(f"asks for the positions in {topic}", ask)  # type: ignore[no-any-return]


class Tables(Partition):
    def made_from(self, topic: str, topic_id: str) -> None:
        super().made_from(str(topic), topic_id)


class TablesOfBefore(Tables):
    """As the version before wrote them: their positions say nothing of the source."""

    def made_from(self, topic: str, topic_id: str) -> None: ...

    def restore(self, funnel: Any, leads: Any) -> None:
        super().restore(funnel, leads)
        self._forget()  # and it writes nothing before there are records

    def apply(self, *batch: Any, **more: Any) -> Effects:
        effects = super().apply(*batch, **more)
        self._forget()
        for rows in (effects.funnel, effects.leads):
            rows[-1] = rows[-1][0], encode_position(self.written)
        return effects

    def _forget(self) -> None:
        old = self.written
        self.written = Position(
            old.offset, old.watermark_ms, old.fold, old.applied, old.duplicates, old.rejected, old.rerouted
        )


class Source:
    """What the broker says of the source."""

    topic = SOURCE

    def __init__(self, process: "Process") -> None:
        self._worker = process

    async def topic_id(self, partition: int) -> str:
        kafka = self._worker.kafka
        return await self._worker.call("asks for the topic's id", lambda: kafka.topic_id)  # type: ignore[no-any-return]

    async def found(self, numbers: Iterable[int]) -> Mapping[int, Found]:
        numbers = list(numbers)
        topic_id = await self.topic_id(numbers[0])
        logs = {number: self._worker.kafka.logs[TP(SOURCE, number)] for number in numbers}

        def ask() -> Mapping[int, Found]:
            return {
                n: Found(str(SOURCE), topic_id, range(log.start, log.stable_end)) for n, log in logs.items()
            }

        return await self._worker.call("asks for the offsets of the source", ask)  # type: ignore[no-any-return]

    async def records(self, offsets: Mapping[int, int]) -> Mapping[int, Witness | None]:
        def ask() -> Mapping[int, Witness | None]:
            return {number: self._record(number, offset) for number, offset in offsets.items()}

        return await self._worker.call("asks for witnesses", ask) if offsets else {}

    def _record(self, number: int, offset: int) -> Witness | None:
        log = self._worker.kafka.logs[TP(SOURCE, number)]
        if offset < log.start:
            return GONE
        found = log.committed(offset, offset + 1)
        return Witness.of(offset, found[0].timestamp, found[0].key, found[0].value) if found else None

    async def close(self) -> None: ...


class Process:
    """What talks to the broker, until it ends itself or is killed."""

    def __init__(self, schedule: Any, kafka: Kafka, name: str, group: Any) -> None:
        self.schedule = schedule
        self.kafka = kafka
        self.name = name
        self.group = group
        self.started_as: App = group.app
        self.is_paused = self.is_dead = self.is_judged = self.had_error = False
        self.reason: BaseException | None = None
        self.tasks: list[asyncio.Task[None]] = []

    def fail(self, error: BaseException) -> None:
        """The process ends itself: nothing of it happens after."""
        if not self.is_dead:
            self.reason = error
            self.die()

    def die(self) -> None:
        self.is_dead = True
        self.schedule.note(f"{self.name} ends: {self.reason!r}")
        for task in self.tasks:
            task.cancel()

    async def watch(self, service: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """What is raised inside ends the process."""
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
        return []


class Operator(Process):
    """Runs `callfunnel source adopt`."""

    def __init__(self, schedule: Any, kafka: Kafka, number: int, group: Any) -> None:
        super().__init__(schedule, kafka, f"adopt{number}", group)
        self.tasks = [asyncio.create_task(self.watch(self._run))]

    async def _run(self) -> None:
        client, app = {"worker": self}, self.started_as
        transactions = self.schedule.rules.transactions(app.name, client, 15.0)
        await adopt(transactions, Source(self), client, app.name, app.partitions)
        self.group.is_refused = False
        self.schedule.counts["adoptions"] += 1
        self.die()


class Worker(Process):
    """A process, and Faust in it. To the code under test it is the app, the consumer and the recovery."""

    def __init__(self, schedule: Any, kafka: Kafka, number: int, group: Any) -> None:
        super().__init__(schedule, kafka, f"w{number}", group)
        self.heard = schedule.partitions
        """The number of the source's partitions when the consumer last asked for metadata."""
        self.is_restoring = self.is_suspended = False
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
        app = self.started_as
        self.conf = SimpleNamespace(broker_request_timeout=30.0)
        self.app = self.consumer = self.assignor = self.flow_control = self.tables = self._fetcher = self
        self.consumer_generation_id = 0
        self.on_rebalance_complete = SimpleNamespace(send=self._nothing)
        self.funnel_table, self.leads_table = (self._table(name) for name in (app.funnel, app.leads))
        self.completed = asyncio.Event()
        self.actives_for_table = self.standbys_for_table = {}
        tables = TablesOfBefore if schedule.is_of_before(self.name) else Tables
        metrics = Metrics()
        metrics.source_gap_events = Gaps(self._gap)  # type: ignore[attr-defined]
        self.log = logging.getLogger("model")
        self.ingest = schedule.rules.ingest(
            self,
            app_id=app.name,
            source=Source(self),
            dead_letters=app.dead_letters,
            transactions=schedule.rules.transactions(app.name, {"worker": self}, 15.0),
            batch_events=8,
            new_partition=lambda number: tables(
                number, app.partitions, app.fold, DECODER, tolerance=TOLERANCE
            ),
            partitioner=app.partitioner,
            refusals=Refusals(metrics, SOURCE, app.dead_letters, 0.5),  # type: ignore[arg-type]
            resumed=self._resumed if schedule.stops else None,
            metrics=metrics,  # type: ignore[arg-type]
            fail=self.fail,
        )
        self.tasks = [
            asyncio.create_task(self.watch(run)) for run in (self._agent, self._listen, self._recover)
        ]

    def _table(self, name: str) -> Any:
        partitions = self.started_as.partitions
        table = SimpleNamespace(
            name=name,
            changelog_topic_name=name,
            partitions=partitions,
            tables_type=DefinedTables,
            fail=self.fail,
        )
        table.rows = RestoredRows("changelog://", self, table)  # type: ignore[arg-type]
        return table

    def die(self) -> None:
        super().die()
        for lane in self.ingest.lanes.values():
            if lane.task is not None:
                lane.task.cancel()

    def gone(self, partition: int) -> list[tuple[int, int]]:
        """The source offsets that were gone, says this worker: holes, and what was before the first start."""
        holes = list(self.holes.get(partition, ()))
        if self.schedule.position(self.started_as, partition) is None and partition in self.began:
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
        return self.heard

    def is_damaged(self, tp: TP) -> bool:
        return False

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
            return {tp: self.group_offset(tp) for tp in self._source()}

        self.positions.update(await self.call("asks for the group's offsets", ask))

    def group_offset(self, tp: TP) -> int:
        return self.kafka.group_offsets.get((self.started_as.name, tp), self.kafka.logs[tp].start)

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
            "asks what was resumed",
            lambda: self.schedule.resumed.get((self.started_as.name, partition)),
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
            table = self.funnel_table if tp.topic == self.started_as.funnel else self.leads_table
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

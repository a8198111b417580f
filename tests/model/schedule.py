"""Random schedules of everything that can happen to workers and their Kafka, and the verdict on what is left.

The law: whatever happened, the committed tables are the oracle's on the records of the source, every record
is accounted for once, and a worker ends only with a reason that is true. Whatever was published, wherever and
with whatever headers, and however often the source grew and was counted anew by other apps, the last of them
has counted each event once, at its lead's home. A schedule is a function of its seed.
"""

import asyncio
import logging
import math
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import cache
from itertools import accumulate
from random import Random
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
from aiokafka.errors import KafkaError, RequestTimedOutError
from faust.types import TP
from model.kafka import Entry, Kafka, Transaction
from model.worker import DECODER, SOURCE, App, Producer, Worker, hanging, last

from agents.errors import Mended, Stalled, TablesWrong, TakenOver, TopicsWrong, WriteFailed
from agents.ingest import Ingest
from agents.ledger import Ledger
from agents.rerouting import LAPS, REROUTED
from schemas.codec import Rejected
from schemas.events import TYPES, Event
from schemas.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    decode_columns,
    decode_key,
    decode_position,
)
from streams import oracle
from streams.partitioning import home


class Rules(NamedTuple):
    """The law as the product keeps it, or with one rule switched off."""

    ingest: type[Ingest] = Ingest
    ledger: type[Ledger] = Ledger
    patches: tuple[tuple[str, Any], ...] = ()


LAW = Rules()
WORLD = {"agents.ledger.Producer": Producer, "agents.hanging.hanging": hanging, "agents.hanging.last": last}
"""What the product finds in place of Kafka's clients."""

START_MS = 1_238_284_800_000
MOMENTS_MS = (0, 1, 5_000, 14_999, 15_000, 60_000, 300_000, 3_600_000, 7 * 3_600_000, 4 * 86_400_000)
LEADS_OF_THE_FLOOR = ("a", "b", "c", "d", "e", "f")


@cache
def floor() -> dict[str, list[bytes]]:
    """Some events of each lead, as a publisher writes them."""
    chance = Random(0)
    return {
        lead: [
            msgspec.json.encode(
                TYPES[kind](
                    event_id=f"e{i}",
                    occurred_at=START_MS + chance.choice(MOMENTS_MS),
                    lead_id=lead,
                    call_id=chance.choice((None, "c", "c")),
                    campaign=chance.choice((None, "spring", "autumn")),
                    agent=chance.choice((None, "ann")),
                )
            )
            for i, kind in enumerate((*TYPES, "lead_created", "dial", "connect", "dm_reached", "call_ended"))
        ]
        for lead in LEADS_OF_THE_FLOOR
    }


@cache
def judge(value: bytes, key: bytes) -> Event | Rejected:
    return DECODER.decode(value, key, START_MS)


Header = tuple[str, bytes]


def mark_of(app: App, partitions: int) -> Header:
    """What workers of this app write on what they send home."""
    return REROUTED, f"{app.name} {app.partitioner} {partitions}".encode()


class Record(NamedTuple):
    key: bytes
    value: bytes
    partitioner: str
    """How its publisher finds a partition: by a hash of the key, or at random."""
    headers: tuple[Header, ...]


class Published(NamedTuple):
    partition: int
    event: Event
    headers: tuple[Header, ...]


class Group:
    """The workers of one app: who is in the consumer group, and its generation."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.members: list[Worker] = []
        self.generation = 0


class Violation(Exception):
    pass


class Schedule:
    """One schedule; `run` returns what it broke, or None."""

    def __init__(self, seed: int, rules: Rules = LAW) -> None:
        self.seed = seed
        self.rules = rules
        self.notes: list[str] = []
        self.parked: list[tuple[Worker, str, asyncio.Future[None]]] = []
        chance = self._chance = Random(seed)
        self.flip_at = chance.random
        self.partitions = chance.choice((1, 2, 2, 3))
        """Of the source, as they are at this moment."""
        self._crew = chance.choice((1, 2, 2, 3))
        self._parking = chance.choice((0.05, 0.2, 0.5))
        self._faults = chance.choice((0.0, 0.01, 0.03, 0.06))
        self._errors = chance.choice((0.0, 0.0, 0.0, 0.05))
        self._truncates = chance.random() < 0.04
        self._grows = not self._truncates and chance.random() < 0.3
        self._tears = not self._truncates and not self._grows and chance.random() < 0.4
        self._heals = chance.random() < 0.8
        self._steps = chance.randint(20, 80)
        app = App("model0", self.partitions, self._partitioner())
        self._groups = [Group(app)]
        self._kafka = Kafka((app.funnel, app.leads), app.dead_letters)
        self._workers: list[Worker] = []
        self._published: list[Published] = []
        self._truncated: set[int] = set()
        self._unpublished = self._records()
        self.is_calm = False
        self.counts: Counter[str] = Counter()

    @property
    def _group(self) -> Group:
        """Of the app that counts now; those before it may have workers, too."""
        return self._groups[-1]

    def _partitioner(self) -> str:
        return self._chance.choice(("murmur2", "murmur2", "crc32", "trust")) if self._grows else "murmur2"

    def _records(self) -> list[Record]:
        chance = self._chance
        leads = chance.sample(LEADS_OF_THE_FLOOR, chance.randint(1, 4))
        astray = 0.0 if self._truncates else chance.choice((0.0, 0.15))
        usual = chance.choice(("murmur2", "crc32")) if self._grows else "murmur2"
        marked = chance.choice((0.0, 0.3)) if self._grows else 0.0
        records = []
        for _ in range(chance.randint(3, 14)):
            lead = chance.choice(leads)
            value = chance.choice(floor()[lead])
            partitioner = "random" if chance.random() < astray else usual
            if chance.random() < (0.3 if self._tears else 0.12):  # dead letters seldom hang
                value = chance.choice((b"{", b'{"type":"dial"}', floor()["a" if lead != "a" else "b"][0]))
            headers = self._marks() if chance.random() < marked else ()
            records.append(Record(lead.encode(), value, partitioner, headers))
        return records

    def _marks(self) -> tuple[Header, ...]:
        """Forged, or kept by whoever copied the record from another topic."""
        chance = self._chance
        app = App(chance.choice(("model0", "model1", "another")), 0, chance.choice(("murmur2", "crc32")))
        mark = chance.choice(((REROUTED, b"1"), mark_of(app, chance.randint(1, 4))))
        return (mark,) * chance.choice((1, 1, 2, LAPS))

    # Asked by the workers

    def flip(self, probability: float) -> bool:
        return self._chance.random() < probability

    def size(self, most: int) -> int:
        return self._chance.randint(1, most)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def parks(self) -> bool:
        return not self.is_calm and self._chance.random() < self._parking

    def errs(self, how: str) -> bool:
        """Recovery does not do what it has to."""
        if self.is_calm or not self._errors or self._chance.random() >= self._errors:
            return False
        self.note(how)
        self.counts["errors of recovery"] += 1
        return True

    async def fault(self, worker: Worker, what: str, when: str) -> None:
        """Ends the process, or says that the request failed, before or after the broker did it."""
        if self.is_calm or self._chance.random() >= self._faults:
            return
        if self._chance.random() < 0.7:
            self.note(f"{worker.name} is killed {when} {what}")
            self.counts["kills in a request"] += 1
            worker.die()
            raise asyncio.CancelledError
        self.note(f"{worker.name}: {what} fails, {when} it was done")
        self.counts["failed requests"] += 1
        worker.had_error = True
        raise RequestTimedOutError

    # What happens

    async def run(self) -> str | None:
        try:
            self.is_calm = self._chance.random() < 0.7
            for _ in range(self._crew):
                self._start()
            self._publish()
            self._rebalance()
            await settle()
            self.is_calm = False
            for name in self._chance.choices(ACTIONS, cum_weights=WEIGHTS, k=self._steps):
                getattr(self, "_" + name)()
                await settle()
                self._check_reasons()
            if self._heals or self._kafka.hanging:
                await self._heal()
            self._judge()
        except Violation as violation:
            return str(violation)
        finally:
            for worker in self._workers:
                worker.is_dead or worker.die()
            await settle()
        return None

    def _living(self) -> list[Worker]:
        return [worker for worker in self._workers if not worker.is_dead]

    def _awake(self) -> list[Worker]:
        return [worker for worker in self._workers if not worker.is_dead and not worker.is_paused]

    def _workers_of(self, group: Group) -> list[Worker]:
        return [worker for worker in self._living() if worker.group is group]

    def _source(self, partition: int | None = None) -> TP:
        number = self._chance.randrange(self.partitions) if partition is None else partition
        return TP(SOURCE, number)

    def _start(self) -> None:
        """A worker that starts asks how many partitions there are, and its topics have to have as many."""
        app = self._group.app
        advised = self._grows and any(
            worker.started_as == app and isinstance(worker.reason, TablesWrong) for worker in self._workers
        )
        if app.partitions != self.partitions or advised:
            self._count_anew()
        started = sum(worker.group is self._group for worker in self._workers)
        if len(self._workers_of(self._group)) < self._crew and started < 15:
            self._workers.append(Worker(self, self._kafka, len(self._workers) + 1, self._group))

    def _count_anew(self) -> None:
        """As a worker advises that finds that the source has grown: under another app id.

        Somebody may not listen, and give the topics of the app there is as many partitions as the source has.
        """
        app = self._group.app
        if app.partitions != self.partitions and self._chance.random() < 0.3:
            self._group.app = app._replace(partitions=self.partitions)
            self.note(f"the topics of {app.name} have {self.partitions} partitions now, as the source has")
            self.counts["apps whose topics were grown"] += 1
            return
        self._groups.append(Group(App(f"model{len(self._groups)}", self.partitions, self._partitioner())))
        self.note(f"{self._group.app} counts everything anew")
        self.counts["apps that count anew"] += 1

    def _anew(self) -> None:
        if self._grows and len(self._groups) < 4:
            self._count_anew()
            self._start()

    def _grow(self) -> None:
        """The source gets more partitions; who reads and who writes it hears of that later."""
        if self._grows and self.partitions < 6:
            self.partitions += self.size(2)
            self.note(f"the source has {self.partitions} partitions now")
            self.counts["growths"] += 1

    def _hear(self) -> None:
        """A client asks for metadata; a consumer that finds them changed joins its group anew."""
        if self._living():
            worker = self._chance.choice(self._living())
            if worker.heard != self.partitions:
                worker.heard = self.partitions
                self._rebalance(worker.group)

    def _rebalance(self, group: Group | None = None) -> None:
        """The awake are given all partitions and hear of it each in its own time, the paused never."""
        group = group or self._chance.choice(self._groups)
        group.members = [worker for worker in self._awake() if worker.group is group]
        if not group.members:
            return
        group.generation += 1
        app = group.app
        shares: defaultdict[Worker, set[TP]] = defaultdict(set)
        for number in range(app.partitions):
            owner = self._chance.choice(group.members)
            shares[owner] |= {TP(topic, number) for topic in (SOURCE, app.funnel, app.leads)}
        for worker in group.members:
            worker.generations.put_nowait((group.generation, frozenset(shares[worker])))

    def _release(self) -> None:
        self.parked = [one for one in self.parked if not one[2].done()]
        ready = [one for one in self.parked if not one[0].is_paused]
        if ready:
            self._chance.choice(ready)[2].set_result(None)

    def _deliver(self) -> None:
        awake = [worker for worker in self._awake() if worker.flowing]
        if awake:
            worker = self._chance.choice(awake)
            behind = [
                tp for tp in sorted(worker.flowing) if worker.positions[tp] != self._kafka.logs[tp].stable_end
            ]
            if behind:
                worker.deliver(self._chance.choice(behind), self._chance.randint(1, 4))

    def _publish(self) -> None:
        for record in self._unpublished[: self._chance.randint(1, 4)]:
            self._unpublished.remove(record)
            partition = self._place(record)
            if partition in self._truncated:
                continue
            at_ms = START_MS + len(self._unpublished)
            self._kafka.logs[self._source(partition)].append(record.key, record.value, record.headers, at_ms)
            event = judge(record.value, record.key)
            if not isinstance(event, Rejected):
                self._published.append(Published(partition, event, record.headers))

    def _place(self, record: Record) -> int:
        known = self.partitions
        if self._grows and self._chance.random() < 0.2:
            known = self._groups[0].app.partitions
        if record.partitioner == "random":
            return self._chance.randrange(known)
        return home(record.key, known, record.partitioner)

    def _mark(self) -> None:
        decided = [one for one in self._kafka.running.values() if one.verdict is not None and one.unmarked]
        if decided:
            transaction = self._chance.choice(decided)
            if self._tears and self._chance.random() < 0.4:
                self._tear(transaction)
            else:
                self._kafka.mark(transaction, self._chance.choice(list(transaction.unmarked)))

    def _tear(self, transaction: Transaction) -> None:
        """Some of its partitions never hear how the transaction ended; all others do."""
        for tp in self._chance.sample(list(transaction.unmarked), self.size(len(transaction.unmarked))):
            self.note(f"{tp} has no marker of the transaction of {transaction.owner} ({transaction.verdict})")
            self._kafka.leave_out(transaction, tp)
            self.counts["markers left out"] += 1
        self._kafka.settle(transaction.owner)
        if self._chance.random() < 0.5:  # what takes the broker away seldom leaves its workers alone
            self._kill()

    def _kill(self) -> None:
        if self._living():
            worker = self._chance.choice(self._living())
            self.note(f"{worker.name} is killed")
            worker.die()

    def _pause(self) -> None:
        if self._awake():
            worker = self._chance.choice(self._awake())
            worker.is_paused = True
            self.note(f"{worker.name} is paused")

    def _wake(self) -> None:
        for worker in self._living():
            if worker.is_paused and self._chance.random() < 0.5:
                worker.is_paused = False
                self.note(f"{worker.name} wakes")
                self.counts["zombies"] += 1

    def _retain(self) -> None:
        tp = self._source()
        log = self._kafka.logs[tp]
        if log.start < log.stable_end:
            log.retain(self._chance.randint(log.start + 1, log.stable_end))
            self.note(f"retention: {tp} starts at {log.start}")

    def _compact(self) -> None:
        app = self._chance.choice(self._groups).app
        tp = TP(self._chance.choice((app.funnel, app.leads)), self._chance.randrange(app.partitions))
        log = self._kafka.logs[tp]
        if log.end:
            # Kafka keeps tombstones for a day, which is longer than any recovery takes.
            self._kafka.logs[tp].compact(
                self._chance.randint(0, log.end - 1), tombstones=any(w.is_restoring for w in self._living())
            )

    def _truncate(self) -> None:
        tp = self._source()
        position = self.position(self._group.app, tp.partition)
        if not self._truncates or self._truncated or position is None or position.offset < 4:
            return
        self._truncated.add(tp.partition)
        self._kafka.replace(tp, self._chance.randrange(position.offset - 3))
        self.note(f"{tp} ends at {self._kafka.logs[tp].end} now")
        self.counts["truncations"] += 1

    def _time_out(self) -> None:
        open_ = [one for one in self._kafka.running.values() if one.verdict is None]
        if open_:
            name = self._chance.choice(open_).owner
            self.note(f"the transaction of {name} times out")
            self._kafka.time_out(name)

    def _commit(self) -> None:
        """The group's offset, from a member of this generation; it may fail."""
        for worker in self._awake():
            group = worker.group
            if worker.consumer_generation_id == group.generation and self._chance.random() < 0.7:
                for tp, offset in worker.acked.items():
                    self._kafka.group_offsets[group.app.name, tp] = offset
                    self._check_commit(group.app, tp, offset)
            worker.acked.clear()

    def _drop(self) -> None:
        """Faust's queues are cleared."""
        if self._awake():
            self._chance.choice(self._awake()).resume()

    def _rewind(self) -> None:
        """Something is delivered again, or something is left out."""
        for worker in self._awake():
            for tp in sorted(worker.flowing):
                worker.positions[tp] = max(0, worker.positions[tp] + self._chance.randint(-4, 1))

    # The end

    async def _heal(self) -> None:
        """Nothing more goes wrong: everything published must get into the tables."""
        self.note("no more faults")
        self.is_calm = True
        for turn in range(60):
            # Its next record gives a topic away that was cut off: the first one, or the second where a worker
            # that was set back stands exactly at its end.
            for number in self._truncated if turn in (0, 30) else ():
                self._kafka.logs[self._source(number)].append(b"a", b"{")
            # What was undone behind the back of an owner who slept comes to light with the next record.
            for number in range(self.partitions) if turn == 30 and self.counts["markers left out"] else ():
                self._kafka.logs[self._source(number)].append(b"a", b"{")
            while self._unpublished:
                self._publish()
            for worker in self._living():
                worker.is_paused = False
            for _, _, go in self.parked:
                go.done() or go.set_result(None)
            self.parked.clear()
            self._settle_transactions()
            while self._living():
                self._hear()
                if all(worker.heard == self.partitions for worker in self._living()):
                    break
            if not self._workers_of(self._group) or self._group.app.partitions != self.partitions:
                self._crew += 1
                self._start()
            for group in self._groups:
                if group.members != self._workers_of(group):
                    self._rebalance(group)
            await settle()
            self._check_reasons()
            for worker in self._living():
                for tp in sorted(worker.flowing):
                    worker.deliver(tp, 100)
            await settle()
            self._check_reasons()
            if (self._truncated or self._torn) and any(
                isinstance(worker.reason, TablesWrong) for worker in self._workers
            ):
                return
            hangs = bool(self._kafka.hanging)
            if not (self._truncated or hangs) and self._all_is_counted():
                self._judge_total()
                return
            if hangs and turn % 20 == 9:  # the next commit decides, or the next start
                for worker in self._living():
                    worker.die()
            if turn % 20 == 19:
                self._watchdog()
        for worker in self._living():
            if worker.started_as.partitions != self.partitions:
                raise Violation(
                    f"{worker.started_as} goes on, and the source has {self.partitions} partitions"
                )
        raise Violation(
            f"the source of {self._truncated} was cut off, and no worker says so"
            if self._truncated
            else "no progress: " + ", ".join(f"{worker.name} {what}" for worker, what, _ in self.parked)
        )

    def _watchdog(self) -> None:
        """What the last batch of a partition leaves out is missed only by the watch over the lag."""
        for worker in self._living():
            why = worker.ingest.stalled(math.inf, 60.0)
            if why is not None and not worker.unacked:
                self.counts["stalls"] += 1
                worker.had_error = True
                worker.fail(Stalled(why))

    def _settle_transactions(self) -> None:
        """What nobody can end any more times out."""
        living = {worker.group.app.name for worker in self._living()}
        for name, transaction in list(self._kafka.running.items()):
            if transaction.verdict is None and self.is_calm and name.partition("-")[0] not in living:
                self._kafka.time_out(name)
            if transaction.verdict is not None:
                self._kafka.settle(name)

    def position(self, app: App, partition: int) -> Position | None:
        for entry in reversed(self._kafka.logs[TP(app.funnel, partition)].entries):
            if entry.key == POSITION_KEY and entry.is_committed:
                assert entry.value is not None
                return decode_position(entry.value)
        return None

    def _all_is_counted(self) -> bool:
        """By every app that has workers; and none of them works on a source that it takes for another."""
        if any(worker.started_as.partitions != self.partitions for worker in self._living()):
            return False
        self._settle_transactions()
        working = [group for group in self._groups if self._workers_of(group)]
        return self._group in working and all(
            self._is_counted(group, number) for group in working for number in range(self.partitions)
        )

    def _is_counted(self, group: Group, partition: int) -> bool:
        position = self.position(group.app, partition)
        log = self._kafka.logs[self._source(partition)]
        is_owned = any(partition in worker.ingest.lanes for worker in self._workers_of(group))
        return is_owned and not log.committed(position.offset if position else 0, log.end)

    # The verdict

    def _check_reasons(self) -> None:
        for worker in self._workers:
            reason = worker.reason
            if reason is None or worker.is_judged:
                continue
            worker.is_judged = True
            self.counts[f"ended by {type(reason).__name__}"] += 1
            is_true = (
                worker.had_error
                if isinstance(reason, KafkaError | WriteFailed)
                else self.counts["errors of recovery"] > 0
                or worker.had_error
                or worker.consumer_generation_id != worker.group.generation
                if isinstance(reason, Stalled)
                else bool(self._truncated or self._torn or self._was_grown(worker))
                if isinstance(reason, TablesWrong)
                else worker.started_as.partitions != self.partitions
                if isinstance(reason, TopicsWrong)
                else self.counts["markers left out"] > 0
                if isinstance(reason, Mended)
                else isinstance(reason, TakenOver)
            )
            if not is_true:
                raise Violation(f"{worker.name} ended by {reason!r}") from reason

    def _was_grown(self, worker: Worker) -> bool:
        """Whether its app has tables that were made when the source had another number of partitions."""
        app = worker.started_as
        positions = [self.position(app, number) for number in range(app.partitions)]
        return any(position and position.partitions != app.partitions for position in positions)

    def _check_commit(self, app: App, tp: TP, offset: int) -> None:
        position = self.position(app, tp.partition)
        begin = position.offset if position else 0
        unwritten = self._kafka.logs[tp].committed(begin, offset)
        if unwritten and not self.counts["markers left out"] and tp.partition not in self._truncated:
            raise Violation(f"{tp}: the group's offset is past what is in the tables: {unwritten}")

    def _judge(self) -> None:
        self._settle_transactions()
        astray: Counter[Sent] = Counter()
        sent_home: Counter[Sent] = Counter()
        undecided = {tp.partition for tp in self._kafka.hanging.values()}  # by a worker that needs a person
        for number in range(self.partitions):
            if number not in self._torn | undecided:
                for group in self._groups:
                    self._judge_partition(group.app, number, astray)
            log = self._source_log(number)
            for entry in log.ever_committed():
                if entry.transaction is not None:
                    app, sender = entry.transaction.owner.split("-")
                    assert entry.value is not None
                    sent_home[Sent(app[: len("model0")], int(sender), number, entry.value)] += 1
        if self.counts["markers left out"]:  # what is told twice counts once; of what was torn, some is lost
            lost = {tp.partition for tp in self._kafka.torn if tp.topic == SOURCE}
            astray = Counter(one for one in astray - sent_home if one.to not in lost)
            sent_home = Counter()
        if astray != sent_home:
            raise Violation(f"sent home: {sent_home - astray} too often, {astray - sent_home} not")

    @property
    def _torn(self) -> set[int]:
        """Partitions of which it may be that nobody can tell any more what hung in their changelogs."""
        return {tp.partition for tp in self._kafka.torn if tp.topic in self._kafka.changelogs}

    def _source_log(self, partition: int) -> Any:
        tp = self._source(partition)
        return self._kafka.former.get(tp, self._kafka.logs[tp])

    def _judge_total(self) -> None:
        """The app that counts now has counted each event that was published, once, where it has to be.

        Nothing is said where retention took some before it was read.
        """
        app = self._group.app
        if any(map(self._has_missed, range(app.partitions))):
            return
        own = mark_of(app, app.partitions)
        expected: defaultdict[int, dict[tuple[str, str], Event]] = defaultdict(dict)
        for partition, event, headers in self._published:
            if app.partitioner == "trust":
                at = partition
                counts = REROUTED not in dict(headers)
            else:
                at = home(event.lead_id.encode(), app.partitions, app.partitioner)
                counts = at == partition or headers.count(own) < LAPS
            if counts:
                expected[at][event.lead_id, event.event_id] = event
        for number in range(app.partitions):
            log = self._kafka.logs[TP(app.funnel, number)].ever_committed()
            rows = {
                decode_key(key): decode_columns(row)
                for key, row in self._rows(log).items()
                if key != POSITION_KEY
            }
            wrong = oracle.differences(oracle.tables(expected[number].values()), rows)
            if wrong:
                raise Violation(f"{app} has not counted each event once, in partition {number}: {wrong}")
        self.counts["totals"] += 1

    def _has_missed(self, number: int) -> bool:
        app = self._group.app
        position = self.position(app, number)
        gone = self._kafka.logs[self._source(number)].gone
        return any(start < end for start, end in self._kafka.holes[f"{app.name}-{number}"]) or (
            bool(gone) and gone[-1].offset >= (position.offset if position else 0)
        )

    def _judge_partition(self, app: App, number: int, astray: "Counter[Sent]") -> None:
        rows, leads = (
            self._rows(self._kafka.logs[TP(topic, number)].ever_committed())
            for topic in (app.funnel, app.leads)
        )
        record = rows.pop(POSITION_KEY, None)
        if record != leads.pop(LEADS_POSITION_KEY, None):
            raise Violation(f"partition {number}: the positions of the two tables differ")
        position = decode_position(record) if record else Position(0, -1, "", partitions=app.partitions)
        expected = _Expected(app, number, position.partitions)
        for entry in self._source_log(number).ever_committed():
            if entry.offset < position.offset and not self._was_gone(f"{app.name}-{number}", entry.offset):
                expected.take(entry)
        astray.update(expected.astray)
        got = {decode_key(key): decode_columns(value) for key, value in rows.items()}
        wrong = oracle.differences(oracle.tables(expected.applied), got)
        if wrong:
            raise Violation(f"{app}, partition {number} up to {position.offset}: {wrong}")
        accounts = (position.applied, position.duplicates, position.rejected, position.rerouted)
        if accounts != expected.accounts:
            raise Violation(f"partition {number}: the accounts are {accounts}, not {expected.accounts}")
        if leads.keys() != expected.leads:
            raise Violation(f"partition {number}: the leads are {leads.keys()}, not {expected.leads}")
        dead = sorted(
            int(dict(entry.headers)["__connect.errors.offset"])
            for entry in self._kafka.logs[TP(app.dead_letters, number)].ever_committed()
        )
        if dead != expected.rejected and TP(app.dead_letters, number) not in self._kafka.torn:
            raise Violation(f"partition {number}: dead letters {dead}, not {expected.rejected}")
        self.counts["records"] += sum(accounts)
        self.counts["transactions"] += sum(
            entry.key == POSITION_KEY for entry in self._kafka.logs[TP(app.funnel, number)].ever_committed()
        )
        self.counts["misrouted"] += expected.misrouted

    def _was_gone(self, owner: str, offset: int) -> bool:
        return any(start <= offset < end for start, end in self._kafka.holes[owner])

    def _rows(self, entries: list[Entry]) -> dict[bytes, bytes]:
        rows: dict[bytes, bytes] = {}
        for entry in entries:
            assert entry.key is not None
            if entry.value is None:
                rows.pop(entry.key, None)
            else:
                rows[entry.key] = entry.value
        return rows


class Sent(NamedTuple):
    """An event that an app sent home: from one partition to another."""

    app: str
    by: int
    to: int
    value: bytes


class _Expected:
    """What the records of a partition have to become, by the definitions."""

    def __init__(self, app: App, number: int, partitions: int) -> None:
        self._app = app
        self._number = number
        self._partitions = partitions
        self.misrouted = 0
        self._seen: set[tuple[str, str]] = set()
        self._duplicates = 0
        self.applied: list[Event] = []
        self.rejected: list[int] = []
        self.astray: Counter[Sent] = Counter()
        self.leads: set[bytes] = set()

    def take(self, entry: Entry) -> None:
        assert entry.value is not None
        assert entry.key is not None
        event = judge(entry.value, entry.key)
        if isinstance(event, Rejected):
            self.rejected.append(entry.offset)
            return
        if self._app.partitioner == "trust":
            at = self._number
            stays = REROUTED in dict(entry.headers)
        else:
            at = home(event.lead_id.encode(), self._partitions, self._app.partitioner)
            stays = at != self._number and entry.headers.count(mark_of(self._app, self._partitions)) >= LAPS
        if stays:
            self.rejected.append(entry.offset)
            self.misrouted += 1
            return
        if at != self._number:
            self.astray[Sent(self._app.name, self._number, at, entry.value)] += 1
            return
        self.leads.add(event.lead_id.encode())
        if (event.lead_id, event.event_id) in self._seen:
            self._duplicates += 1
            return
        self._seen.add((event.lead_id, event.event_id))
        self.applied.append(event)

    @property
    def accounts(self) -> tuple[int, int, int, int]:
        return len(self.applied), self._duplicates, len(self.rejected), self.astray.total()


HAPPENS = {
    "release": 40,
    "deliver": 30,
    "publish": 12,
    "mark": 8,
    "commit": 5,
    "start": 5,
    "rebalance": 5,
    "wake": 4,
    "pause": 2,
    "kill": 2,
    "compact": 3,
    "drop": 3,
    "rewind": 4,
    "retain": 1,
    "time_out": 1,
    "truncate": 2,
    "grow": 1,
    "hear": 2,
    "anew": 1,
}
ACTIONS, WEIGHTS = list(HAPPENS), list(accumulate(HAPPENS.values()))


# Running them


class Loop(asyncio.BaseEventLoop):
    """An event loop without the world outside: what is ready runs in order, and nothing else ever happens."""

    def __init__(self) -> None:
        super().__init__()
        self._selector = self
        self.set_exception_handler(lambda *_: None)

    def select(self, timeout: float | None) -> list[Any]:
        return []

    def _process_events(self, events: list[Any]) -> None: ...

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.run_until_complete(coroutine)


async def settle() -> None:
    """Returns when everything else waits for the schedule."""
    ready = asyncio.get_running_loop()._ready  # type: ignore[attr-defined]
    while ready:  # noqa: ASYNC110  (nobody knows when nobody has anything to do)
        await asyncio.sleep(0)


class Runner:
    """Runs schedules under some rules."""

    def __init__(self, rules: Rules = LAW) -> None:
        self._rules = rules
        self._loop = Loop()
        self._stack = ExitStack()
        self.counts: Counter[str] = Counter()

    def __enter__(self) -> "Runner":
        for name, replacement in (*WORLD.items(), *self._rules.patches):
            self._stack.enter_context(patch(name, replacement))
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        self._loop.close()

    def run(self, seed: int) -> Schedule | None:
        """The schedule when it broke the law; its last note says how."""
        schedule = Schedule(seed, self._rules)
        violation = self._loop.run(schedule.run())
        self.counts += schedule.counts
        if violation is None:
            return None
        schedule.note(f"VIOLATION (seed {seed}): {violation}")
        return schedule

    def first_violation(self, schedules: int, seed: int = 0) -> tuple[int, Schedule] | None:
        """How many schedules it took, from the one after `seed` on, and the one that broke the law."""
        for count in range(1, schedules + 1):
            broken = self.run(seed + count)
            if broken is not None:
                return count, broken
        return None


CHUNK = 500


def run_all(
    seed: int, schedules: int, done: Callable[[int], None] = lambda _: None
) -> tuple[Counter[str], list[str] | None]:
    """Run the schedules from this seed on, on all processors: what happened, and the first violation.

    `done` is told how many more have been run.
    """
    chunks = [(first, min(CHUNK, seed + schedules - first)) for first in range(seed, seed + schedules, CHUNK)]
    counts: Counter[str] = Counter()
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(chunks))) as pool:
        for (_, ran), (chunk_counts, broken) in zip(chunks, pool.imap(_run_chunk, chunks), strict=True):
            done(ran)
            counts += chunk_counts
            if broken is not None:
                return counts, broken
    return counts, None


def _run_chunk(chunk: tuple[int, int]) -> tuple[Counter[str], list[str] | None]:
    logging.disable()
    seed, schedules = chunk
    with Runner() as runner:
        found = runner.first_violation(schedules, seed - 1)
    return runner.counts, found[1].notes if found else None

"""Random schedules of everything that can happen to workers and their Kafka, and the verdict on what is left.

The law: whatever happened, the committed tables are the oracle's on the records of the source, every record
is accounted for once, and a worker ends only with a reason that is true. A schedule is a function of its
seed.
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
from model.worker import DEAD_LETTERS, DECODER, FUNNEL, LEADS, SOURCE, Producer, Worker, hanging, last

from agents.errors import Mended, Stalled, TablesWrong, TakenOver, WriteFailed
from agents.ingest import Ingest
from agents.ledger import Ledger
from agents.undecided import REROUTED
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
WORLD = {
    "agents.ledger.Producer": Producer,
    "agents.hanging.hanging": hanging,
    "agents.hanging.last": last,
    "agents.ingest.LOOK_SECONDS": 0,  # nothing sleeps here: who asks Kafka is woken by the schedule
}
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


class Record(NamedTuple):
    partition: int
    key: bytes
    value: bytes


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
        self._partitions = chance.choice((1, 2, 2, 3))
        self._crew = chance.choice((1, 2, 2, 3))
        self._parking = chance.choice((0.05, 0.2, 0.5))
        self._faults = chance.choice((0.0, 0.01, 0.03, 0.06))
        self._errors = chance.choice((0.0, 0.0, 0.0, 0.05))
        self._truncates = chance.random() < 0.04
        self._tears = not self._truncates and chance.random() < 0.25
        self._heals = chance.random() < 0.8
        self._steps = chance.randint(20, 80)
        self._kafka = Kafka((FUNNEL, LEADS), DEAD_LETTERS)
        self._workers: list[Worker] = []
        self._generation = 0
        self._members: list[Worker] = []
        self._truncated: set[int] = set()
        self._moved = ""
        self.stops = seed % 4 == 0
        """Whether workers stop a poisoned partition."""
        self.resumed: dict[int, int] = {}
        """By partition: up to where an operator lets it go on."""
        self._unpublished = self._records()
        self.is_calm = False
        self.counts: Counter[str] = Counter()

    def _records(self) -> list[Record]:
        chance = self._chance
        leads = chance.sample(LEADS_OF_THE_FLOOR, chance.randint(1, 4))
        astray = 0.0 if self._truncates else chance.choice((0.0, 0.15))
        records = []
        for _ in range(chance.randint(3, 14)):
            lead = chance.choice(leads)
            value = chance.choice(floor()[lead])
            partition = home(lead.encode(), self._partitions, "murmur2")
            if chance.random() < astray:
                partition = chance.randrange(self._partitions)
            if chance.random() < (0.35 if self.stops else 0.12):
                value = chance.choice((b"{", b'{"type":"dial"}', floor()["a" if lead != "a" else "b"][0]))
            records.append(Record(partition, lead.encode(), value))
        return records

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

    def _source(self, partition: int | None = None) -> TP:
        number = self._chance.randrange(self._partitions) if partition is None else partition
        return TP(SOURCE, number)

    def _start(self) -> None:
        if len(self._living()) < self._crew and len(self._workers) < 15:
            worker = Worker(self, self._kafka, len(self._workers) + 1, self._partitions)
            self._workers.append(worker)

    def _rebalance(self) -> None:
        """The awake are given all partitions and hear of it each in its own time, the paused never."""
        self._members = self._awake()
        if not self._members:
            return
        self._generation += 1
        shares: defaultdict[Worker, set[TP]] = defaultdict(set)
        for number in range(self._partitions):
            owner = self._chance.choice(self._members)
            shares[owner] |= {TP(topic, number) for topic in (SOURCE, FUNNEL, LEADS)}
        for worker in self._members:
            worker.generations.put_nowait((self._generation, frozenset(shares[worker])))

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
            if record.partition not in self._truncated:
                at_ms = START_MS + len(self._unpublished)
                self._kafka.logs[self._source(record.partition)].append(record.key, record.value, (), at_ms)

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

    def _resume(self) -> None:
        """An operator lets a partition go on, stopped or not."""
        tp = self._source()
        self.resumed[tp.partition] = self._kafka.logs[tp].end
        self.note(f"{tp} may go on, up to {self.resumed[tp.partition]}")

    def check_stop(self, partition: int, before: Position | None) -> None:
        """A transaction was committed: the partition was not stopped, or did not move, or may go on."""
        after = self.position(partition)
        if self.stops and before and after and before.poison == "found" and before.offset < after.offset:
            if self.resumed.get(partition, -1) < before.offset and not self.counts["markers left out"]:
                self._moved = f"partition {partition} was stopped at {before.offset}, and moved"
            else:
                self.counts["stops that ended"] += 1

    def _retain(self) -> None:
        tp = self._source()
        log = self._kafka.logs[tp]
        if log.start < log.stable_end:
            log.retain(self._chance.randint(log.start + 1, log.stable_end))
            self.note(f"retention: {tp} starts at {log.start}")

    def _compact(self) -> None:
        tp = TP(self._chance.choice((FUNNEL, LEADS)), self._chance.randrange(self._partitions))
        log = self._kafka.logs[tp]
        if log.end:
            # Kafka keeps tombstones for a day, which is longer than any recovery takes.
            self._kafka.logs[tp].compact(
                self._chance.randint(0, log.end - 1), tombstones=any(w.is_restoring for w in self._living())
            )

    def _truncate(self) -> None:
        tp = self._source()
        position = self.position(tp.partition)
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
            if worker.consumer_generation_id == self._generation and self._chance.random() < 0.7:
                self._kafka.group_offsets.update(worker.acked)
                for tp in worker.acked:
                    self._check_commit(tp)
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
            for number in range(self._partitions) if turn == 30 and self.counts["markers left out"] else ():
                self._kafka.logs[self._source(number)].append(b"a", b"{")
            while self._unpublished:
                self._publish()
            for number in range(self._partitions):
                self.resumed[number] = self._kafka.logs[self._source(number)].end
            for worker in self._living():
                worker.is_paused = False
            for _, _, go in self.parked:
                go.done() or go.set_result(None)
            self.parked.clear()
            self._settle_transactions()
            if not self._living():
                self._crew += 1
                self._start()
            if self._members != self._living():
                self._rebalance()
            await settle()
            self._check_reasons()
            for worker in self._living():
                for tp in sorted(worker.flowing):
                    worker.deliver(tp, 100)
            await settle()
            self._check_reasons()
            if any(isinstance(worker.reason, TablesWrong) for worker in self._workers):
                return
            hangs = bool(self._kafka.hanging)
            if not (self._truncated or hangs) and all(map(self._is_complete, range(self._partitions))):
                return
            if hangs and turn % 20 == 9:  # the next commit decides, or the next start
                for worker in self._living():
                    worker.die()
            if turn % 20 == 19:
                self._watchdog()
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
        for name, transaction in list(self._kafka.running.items()):
            if transaction.verdict is not None:
                self._kafka.settle(name)

    def position(self, partition: int) -> Position | None:
        for entry in reversed(self._kafka.logs[TP(FUNNEL, partition)].entries):
            if entry.key == POSITION_KEY and entry.is_committed:
                assert entry.value is not None
                return decode_position(entry.value)
        return None

    def _is_complete(self, partition: int) -> bool:
        position = self.position(partition)
        log = self._kafka.logs[self._source(partition)]
        return not log.committed(position.offset if position else 0, log.end)

    # The verdict

    def _check_reasons(self) -> None:
        if self._moved:
            raise Violation(self._moved)
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
                or worker.consumer_generation_id != self._generation
                if isinstance(reason, Stalled)
                else bool(self._truncated or self._torn)
                if isinstance(reason, TablesWrong)
                else self.counts["markers left out"] > 0
                if isinstance(reason, Mended)
                else isinstance(reason, TakenOver)
            )
            if not is_true:
                raise Violation(f"{worker.name} ended by {reason!r}") from reason

    def _check_commit(self, tp: TP) -> None:
        position = self.position(tp.partition)
        begin = position.offset if position else 0
        unwritten = self._kafka.logs[tp].committed(begin, self._kafka.group_offsets[tp])
        if unwritten and not self.counts["markers left out"] and tp.partition not in self._truncated:
            raise Violation(f"{tp}: the group's offset is past what is in the tables: {unwritten}")

    def _judge(self) -> None:
        self._settle_transactions()
        astray: Counter[tuple[int, int, bytes]] = Counter()
        sent_home: Counter[tuple[int, int, bytes]] = Counter()
        undecided = {tp.partition for tp in self._kafka.hanging.values()}  # by a worker that needs a person
        for number in range(self._partitions):
            if number not in self._torn | undecided:
                self._judge_partition(number, astray)
            log = self._source_log(number)
            for entry in log.ever_committed():
                if entry.transaction is not None:
                    sender = int(entry.transaction.owner.split("-")[1])
                    assert entry.value is not None
                    sent_home[sender, number, entry.value] += 1
        if self.counts["markers left out"]:  # what is told twice counts once; of what was torn, some is lost
            lost = {tp.partition for tp in self._kafka.torn if tp.topic == SOURCE}
            astray = Counter(one for one in astray - sent_home if one[1] not in lost)
            sent_home = Counter()
        if astray != sent_home:
            raise Violation(f"sent home: {sent_home - astray} too often, {astray - sent_home} not")

    @property
    def _torn(self) -> set[int]:
        """Partitions of which it may be that nobody can tell any more what hung in their changelogs."""
        return {tp.partition for tp in self._kafka.torn if tp.topic in (FUNNEL, LEADS)}

    def _source_log(self, partition: int) -> Any:
        tp = self._source(partition)
        return self._kafka.former.get(tp, self._kafka.logs[tp])

    def _judge_partition(self, number: int, astray: Counter[tuple[int, int, bytes]]) -> None:
        rows, leads = (
            self._rows(self._kafka.logs[TP(topic, number)].ever_committed()) for topic in (FUNNEL, LEADS)
        )
        record = rows.pop(POSITION_KEY, None)
        if record != leads.pop(LEADS_POSITION_KEY, None):
            raise Violation(f"partition {number}: the positions of the two tables differ")
        position = decode_position(record) if record else Position(0, -1, "")
        expected = _Expected(number, self._partitions)
        for entry in self._source_log(number).ever_committed():
            if entry.offset < position.offset and not self._was_gone(number, entry.offset):
                expected.take(entry)
        astray.update(expected.astray)
        got = {decode_key(key): decode_columns(value) for key, value in rows.items()}
        wrong = oracle.differences(oracle.tables(expected.applied), got)
        if wrong:
            raise Violation(f"partition {number} up to {position.offset}: {wrong}")
        accounts = (position.applied, position.duplicates, position.rejected, position.rerouted)
        if accounts != expected.accounts:
            raise Violation(f"partition {number}: the accounts are {accounts}, not {expected.accounts}")
        if leads.keys() != expected.leads:
            raise Violation(f"partition {number}: the leads are {leads.keys()}, not {expected.leads}")
        dead = sorted(
            int(dict(entry.headers)["__connect.errors.offset"])
            for entry in self._kafka.logs[TP(DEAD_LETTERS, number)].ever_committed()
        )
        if dead != expected.rejected and TP(DEAD_LETTERS, number) not in self._kafka.torn:
            raise Violation(f"partition {number}: dead letters {dead}, not {expected.rejected}")
        self.counts["records"] += sum(accounts)
        self.counts["transactions"] += sum(
            entry.key == POSITION_KEY for entry in self._kafka.logs[TP(FUNNEL, number)].ever_committed()
        )

    def _was_gone(self, partition: int, offset: int) -> bool:
        return any(start <= offset < end for start, end in self._kafka.holes[partition])

    def _rows(self, entries: list[Entry]) -> dict[bytes, bytes]:
        rows: dict[bytes, bytes] = {}
        for entry in entries:
            assert entry.key is not None
            if entry.value is None:
                rows.pop(entry.key, None)
            else:
                rows[entry.key] = entry.value
        return rows


class _Expected:
    """What the records of a partition have to become, by the definitions."""

    def __init__(self, number: int, partitions: int) -> None:
        self._number = number
        self._partitions = partitions
        self._seen: set[tuple[str, str]] = set()
        self._duplicates = 0
        self.applied: list[Event] = []
        self.rejected: list[int] = []
        self.astray: Counter[tuple[int, int, bytes]] = Counter()
        self.leads: set[bytes] = set()

    def take(self, entry: Entry) -> None:
        assert entry.value is not None
        assert entry.key is not None
        event = judge(entry.value, entry.key)
        if isinstance(event, Rejected):
            self.rejected.append(entry.offset)
            return
        at = home(event.lead_id.encode(), self._partitions, "murmur2")
        if at != self._number and REROUTED not in dict(entry.headers):
            self.astray[self._number, at, entry.value] += 1
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
    "resume": 1,
    "time_out": 1,
    "truncate": 2,
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

"""Random schedules of everything that can happen to workers and their Kafka, and the verdict on what is left.

The law: whatever happened, the committed tables are the oracle's on the records of the source, every record
is accounted for once, and a worker ends only with a reason that is true. Whatever the source became, and
whichever partitions and headers its events have, the app that counts it last has counted each event once, at
its lead's home. A schedule is a function of its seed.
"""

import asyncio
import logging
import math
import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Iterable, Mapping
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
from model.worker import (
    DECODER,
    SETTINGS,
    SOURCE,
    App,
    Operator,
    Process,
    Producer,
    Worker,
    funnel_of,
    hanging,
    last,
    last_positions,
    leads_of,
)

from callfunnel.agents.engine.ingest import Ingest
from callfunnel.agents.engine.rerouting import LAPS, REROUTED
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.errors import Mended, Stalled, TablesWrong, TakenOver, TopicsWrong, WriteFailed
from callfunnel.agents.kafka.changelog import tables_of
from callfunnel.schemas.codec import Rejected
from callfunnel.schemas.events import TYPES, Event
from callfunnel.streams import oracle
from callfunnel.streams.partitioning import home
from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    decode_position,
    encode_position,
    generation_of,
)


class Rules(NamedTuple):
    """The law as the product keeps it, or with one rule switched off."""

    ingest: type[Ingest] = Ingest
    transactions: type[Transactions] = Transactions
    patches: tuple[tuple[str, Any], ...] = ()


LAW = Rules()
CHANGES = {
    "": 0.54,
    "grown": 0.26,
    "cut off": 0.08,
    "refilled": 0.03,
    "anew": 0.03,
    "copied": 0.04,
    "copied in part": 0.02,
}
"""What becomes of the source in a schedule, and how often."""
WORLD = {
    "callfunnel.agents.engine.transactions.SharedClient": lambda *_: None,
    "callfunnel.agents.engine.transactions.Producer": Producer,
    "callfunnel.agents.kafka.hanging.hanging": hanging,
    "callfunnel.agents.kafka.hanging.last": last,
    "callfunnel.agents.engine.adopt.last_positions": last_positions,
    "callfunnel.agents.engine.adopt.funnel_changelog": funnel_of,
    "callfunnel.agents.engine.adopt.leads_changelog": leads_of,
    # Nothing sleeps here: who asks Kafka is woken by the schedule.
    "callfunnel.agents.engine.ingest.LOOK_SECONDS": 0,
    "callfunnel.agents.memory.give_back": lambda: None,
    "callfunnel.agents.engine.ingest.DERIVED_AT_ONCE": 1,
    "callfunnel.agents.engine.ingest.ROWS_AT_ONCE": 9,
}
"""What the product finds in place of Kafka's clients."""

START_MS = 1_238_284_800_000
MOMENTS_MS = (0, 1, 5_000, 14_999, 15_000, 60_000, 300_000, 3_600_000, 7 * 3_600_000, 4 * 86_400_000)
LEADS_OF_THE_FLOOR = ("a", "b", "c", "d", "e", "f")


KINDS = (
    *("lead_created", "dial", "connect", "dm_reached", "qualified", "won", "call_ended", "disqualified"),
    *("lost", "lead_created", "dial", "connect", "dm_reached", "call_ended"),
)
"""By name: with another type, the schedules that are known to break a rule would be others."""


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
            for i, kind in enumerate(KINDS)
        ]
        for lead in LEADS_OF_THE_FLOOR
    }


@cache
def judge(value: bytes, key: bytes) -> Event | Rejected:
    return DECODER.decode(value, key, START_MS)


Header = tuple[str, bytes]


def mark_of(app: App, partitions: int) -> Header:
    """The header that workers of this app add to an event that they send home."""
    return REROUTED, f"{app.name} {app.partitioner} {partitions}".encode()


class Record(NamedTuple):
    key: bytes
    value: bytes
    partitioner: str
    """How its publisher chooses a partition: by a hash of the key, or at random."""
    headers: tuple[Header, ...]


class Group:
    """The workers of one app: who is in the consumer group, and its generation."""

    def __init__(self, app: App) -> None:
        self.app = app
        self.members: list[Worker] = []
        self.generation = 0
        self.is_refused = False
        """A worker refused to go on with the tables, and no operator has adopted the source since."""


class Violation(Exception):
    pass


class Schedule:
    """One schedule; `run` returns what it broke, or None."""

    def __init__(self, seed: int, rules: Rules = LAW) -> None:
        self.seed = seed
        self.rules = rules
        self.notes: list[str] = []
        self.parked: list[tuple[Process, str, asyncio.Future[None]]] = []
        chance = self._chance = Random(seed)
        self.flip_at = chance.random
        self.partitions = chance.choice((1, 2, 2, 3))
        """Of the source, as they are at this moment."""
        self._crew = chance.choice((1, 2, 2, 3))
        self._parking = chance.choice((0.05, 0.2, 0.5))
        self._faults = chance.choice((0.0, 0.01, 0.03, 0.06))
        self._errors = chance.choice((0.0, 0.0, 0.0, 0.05))
        self._change = chance.choices(list(CHANGES), list(CHANGES.values()))[0]
        self._grows = self._change == "grown"
        self._upgrades = not self._change and chance.random() < 0.2
        self._refolds = not self._change and not self._upgrades and chance.random() < 0.4
        self._tears = not self._change and chance.random() < 0.45
        self._heals = chance.random() < 0.8
        self._steps = chance.randint(20, 80)
        app = App("model0", self.partitions, self._partitioner())
        self._groups = [Group(app)]
        """The last one is of the app that counts now; those before it may have workers, too. Only the first
        app has tables of the records that the source had before it became another one."""
        self._kafka = Kafka((app.funnel, app.leads), app.dead_letters)
        self._kafka.topic_id = "t1" if chance.random() < 0.85 else ""
        self._workers: list[Worker] = []
        self._operators: list[Operator] = []
        self._cut_off: set[int] = set()
        """Partitions where the tables of the first app took in records that the source does not have now."""
        self._is_another = False
        """The source is another topic by now."""
        self._moved = ""
        self.stops = seed % 4 == 0 and not self._upgrades
        """Whether workers stop a poisoned partition; the version before does not know of it."""
        self.resumed: dict[tuple[str, int], int] = {}
        """By app and partition: up to where an operator lets it go on."""
        self._unpublished = self._records()
        self.is_calm = False
        self.counts: Counter[str] = Counter()

    @property
    def _group(self) -> Group:
        """The group of the app that counts now."""
        return self._groups[-1]

    def _partitioner(self) -> str:
        return self._chance.choice(("murmur2", "murmur2", "crc32", "trust")) if self._grows else "murmur2"

    def _records(self) -> list[Record]:
        chance = self._chance
        leads = chance.sample(LEADS_OF_THE_FLOOR, chance.randint(1, 4))
        astray = chance.choice((0.0, 0.15)) if self._change in ("", "grown", "copied") else 0.0
        usual = chance.choice(("murmur2", "crc32")) if self._grows else "murmur2"
        marked = chance.choice((0.0, 0.3)) if self._grows else 0.0
        records = []
        for _ in range(chance.randint(3, 14)):
            lead = chance.choice(leads)
            value = chance.choice(floor()[lead])
            partitioner = "random" if chance.random() < astray else usual
            if chance.random() < (0.35 if self.stops else 0.3 if self._tears else 0.12):
                value = chance.choice((b"{", b'{"type":"dial"}', floor()["a" if lead != "a" else "b"][0]))
            headers = self._marks() if chance.random() < marked else ()
            records.append(Record(lead.encode(), value, partitioner, headers))
        return records

    def _marks(self) -> tuple[Header, ...]:
        """Headers that were forged, or kept when the record was copied from another topic."""
        chance = self._chance
        app = App(chance.choice(("model0", "model1", "another")), 0, chance.choice(("murmur2", "crc32")))
        mark = chance.choice(((REROUTED, b"1"), mark_of(app, chance.randint(1, 4))))
        return (mark,) * chance.choice((1, 1, 2, LAPS))

    # Asked by the workers

    def flip(self, probability: float) -> bool:
        return self._chance.random() < probability

    def size(self, most: int) -> int:
        return self._chance.randint(1, most)

    def is_of_before(self, worker: str) -> bool:
        """Whether this worker is of the version before; workers of both come and go during an upgrade."""
        if not self._upgrades or self._chance.random() < 0.5:
            return False
        self.note(f"{worker} is of the version before")
        self.counts["workers of the version before"] += 1
        return True

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

    async def fault(self, worker: Process, what: str, when: str) -> None:
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
            self._kill_all()
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
        """Start a worker, under a new app id where the one there is cannot go on with the source."""
        group = self._group
        is_advised = bool(self._change) and group.is_refused and (self.is_calm or self.flip(0.5))
        if group.app.partitions != self.partitions or is_advised:
            self._count_anew()
        self._start_worker()

    def _start_worker(self) -> None:
        started = sum(worker.group is self._group for worker in self._workers)
        if len(self._workers_of(self._group)) < self._crew and started < 25:
            self._workers.append(Worker(self, self._kafka, len(self._workers) + 1, self._group))

    def _count_anew(self) -> None:
        """Follow the advice of a worker that refuses its tables or finds that the source has grown.

        Some operators do not: they grow the topics of the app that there is, as the source has grown.
        """
        app = self._group.app
        if app.partitions != self.partitions and self.flip(0.3):
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

    def _refold(self) -> None:
        """An operator starts workers with other settings of the fold, while those with former ones go on."""
        app = self._group.app
        if self._refolds and app.settings + 1 < len(SETTINGS):
            self._group.app = app._replace(settings=app.settings + 1)
            self.note(f"workers of {app.name} have other settings from now on")
            self.counts["other settings"] += 1
            self._start()

    def _grow(self) -> None:
        """The source gets more partitions; its readers and publishers hear of that later."""
        if self._grows and self.partitions < 6:
            self.partitions += self.size(2)
            self.note(f"the source has {self.partitions} partitions now")
            self.counts["growths"] += 1

    def _hear(self) -> None:
        """A consumer asks for metadata; if the source has grown, it joins its group anew."""
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
            if partition not in self._cut_off:
                at_ms = START_MS + len(self._unpublished)
                log = self._kafka.logs[self._source(partition)]
                log.append(record.key, record.value, record.headers, at_ms)
                if self._change == "copied" and self._chance.random() < 0.3:  # in a transaction of its own
                    log.append(None, None, is_marker=True)

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

    def _resume(self) -> None:
        """An operator lets a partition go on, stopped or not."""
        app = self._chance.choice(self._groups).app
        tp = self._source()
        self.resumed[app.name, tp.partition] = end = self._kafka.logs[tp].end
        self.note(f"{app} may go on with {tp}, up to {end}")

    def check_stop(self, app: App, partition: int, before: Position | None) -> None:
        """A transaction was committed: the partition was not stopped, or took no record in, or may go on."""
        after = self.position(app, partition)
        if not (self.stops and before and after and before.poison == "found"):
            return
        if not self._kafka.logs[self._source(partition)].committed(before.offset, after.offset):
            return
        is_excused = self.counts["markers left out"] or self._is_another or partition in self._cut_off
        if self.resumed.get((app.name, partition), -1) < before.offset and not is_excused:
            self._moved = f"partition {partition} was stopped at {before.offset}, and moved"
        else:
            self.counts["stops that ended"] += 1

    def _retain(self) -> None:
        tp = self._source()
        log = self._kafka.logs[tp]
        if log.start < log.stable_end and tp.partition not in self._cut_off:  # it would hide the cut
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

    def _change_source(self) -> None:
        """The source becomes another one, at most once in a schedule."""
        if self._change in ("", "grown") or self._cut_off or self._is_another or len(self._groups) > 1:
            return
        positions = self._positions(self._group.app)
        if not positions:
            return
        if self._change in ("cut off", "refilled"):
            number = self._chance.choice(list(positions))
            self._cut(self._source(number), positions[number])
        elif not any(self._kafka.logs[self._source(n)].open for n in range(self.partitions)):
            self._make_anew(positions)

    def _cut(self, tp: TP, position: Position) -> None:
        assert position.witness is not None
        keep = self._chance.randint(0, position.witness.offset)
        if self._change == "refilled":  # all that noticed the cut is gone
            self._kill_all()
            self._kafka.make_anew([tp], keep, self._chance.randint(0, 3))
        elif position.offset - keep >= 4:
            self._kafka.replace(tp, keep)
        else:
            return
        self._cut_off.add(tp.partition)
        self.note(f"{tp} is {self._change}: another record at {keep}, ends at {self._kafka.logs[tp].end} now")
        self.counts[self._change] += 1

    def _make_anew(self, positions: Mapping[int, Position]) -> None:
        """The source is another topic of the same name; the same records may be in it, or some of them."""
        if not self._kafka.topic_id:  # then only who starts can see it
            self._kill_all()
        everywhere = [self._source(number) for number in range(self.partitions)]
        longest = max(self._kafka.logs[tp].end for tp in everywhere)
        keep = {"anew": 0, "copied in part": self._chance.randint(0, longest), "copied": None}[self._change]
        self._kafka.make_anew(everywhere, keep, self._chance.randint(0, 3))
        self._kafka.topic_id = self._kafka.topic_id and "t2"
        self._is_another = True
        if keep is not None:
            self._unpublished.clear()
        if keep is not None and not self._kafka.topic_id:
            self._cut_off |= {
                number
                for number, position in positions.items()
                if position.witness is not None and position.witness.offset >= keep
            }
        self.note(f"the source is made anew: {self._change} ({keep}), id {self._kafka.topic_id!r}")
        self.counts[self._change] += 1

    def _kill_all(self) -> None:
        for process in [*self._living(), *self._operators]:
            process.is_dead or process.die()

    @property
    def _foreign(self) -> set[int]:
        """Partitions where the tables of the first app name another topic than the source is."""
        if not self._is_another:
            return set()
        positions = self._positions(self._groups[0].app)
        return {n for n, position in positions.items() if position.topic_id != self._kafka.topic_id}

    def _adopt(self) -> None:
        """An operator does, whoever works meanwhile."""
        if self._foreign and all(one.is_dead for one in self._operators):
            self.note("an operator adopts the source")
            self._operators.append(Operator(self, self._kafka, len(self._operators) + 1, self._groups[0]))

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
        for worker in filter(self._has_former_settings, self._living()):
            self.note(f"an operator stops {worker.name}: it has former settings")
            worker.die()
        if self._is_another:
            self._kill_all()
            await settle()
            if self._group is self._groups[0] and (foreign := self._foreign):
                await self._consult(foreign)
        for turn in range(60):
            # Some faults show only with the next record of a partition: the topic was cut off, or is another
            # one, or a transaction was undone while the owner slept. A worker that was set back to exactly
            # the end of a topic that was cut off needs a second record.
            for number in range(self.partitions) if turn == 30 or (turn == 0 and self._change) else ():
                self._kafka.logs[self._source(number)].append(b"a", b"{")
            while self._unpublished:
                self._publish()
            for group in self._groups:
                for number in range(self.partitions):
                    self.resumed[group.app.name, number] = self._kafka.logs[self._source(number)].end
            for worker in self._living():
                worker.is_paused = False
            for _, _, go in self.parked:
                go.done() or go.set_result(None)
            self.parked.clear()
            self._settle_transactions()
            while any(worker.heard != self.partitions for worker in self._living()):
                self._hear()
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
                    worker.deliver(tp, 1_000)
            await settle()
            self._check_reasons()
            if self._group.is_refused and not self._change:
                return
            hangs = bool(self._kafka.hanging)
            if not hangs and self._all_is_counted():
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
            f"the source of {self._cut_off} has other records, and no worker says so"
            if self._cut_off and self._workers_of(self._groups[0])
            else "no progress: " + ", ".join(f"{worker.name} {what}" for worker, what, _ in self.parked)
        )

    async def _consult(self, foreign: set[int]) -> None:
        """A worker that starts refuses the other topic; then an operator adopts it where that is possible."""
        self._start_worker()
        self._rebalance(self._group)
        await settle()
        self._check_reasons()
        if not isinstance(self._workers[-1].reason, TablesWrong):
            raise Violation(f"the tables of {foreign} are of another topic, and a worker goes on")
        self._adopt()
        await settle()
        self._check_reasons()
        operator = self._operators[-1]
        if operator.reason is None and self._foreign:
            raise Violation(f"{operator.name} left the tables of {self._foreign} as they were")

    def _watchdog(self) -> None:
        """What the last batch of a partition leaves out is missed only by the watch over the lag."""
        for worker in self._living():
            why = worker.ingest.stalled(math.inf, 60.0)
            if why is not None and not worker.unacked:
                self.counts["stalls"] += 1
                worker.had_error = True
                worker.fail(Stalled(why))

    def _settle_transactions(self) -> None:
        """Deliver all markers. A transaction that no worker can end any more times out."""
        living = {worker.started_as.name for worker in self._living()}
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

    def _positions(self, app: App) -> dict[int, Position]:
        found = {number: self.position(app, number) for number in range(app.partitions)}
        return {number: position for number, position in found.items() if position is not None}

    def _all_is_counted(self) -> bool:
        """Whether every app that has workers has counted all, and none of them knows another source."""
        if any(worker.started_as.partitions != self.partitions for worker in self._living()):
            return False
        self._settle_transactions()
        working = [group for group in self._groups if self._workers_of(group)]
        return self._group in working and all(
            self._is_counted(group, number) for group in working for number in range(self.partitions)
        )

    def _is_counted(self, group: Group, partition: int) -> bool:
        if group is self._groups[0] and partition in self._cut_off:
            return False
        position = self.position(group.app, partition)
        log = self._kafka.logs[self._source(partition)]
        is_owned = any(partition in worker.ingest.lanes for worker in self._workers_of(group))
        has_turned = position is None or (
            position.fold == group.app.fold.id and self._is_swept(group.app, partition)
        )
        return is_owned and has_turned and not log.committed(position.offset if position else 0, log.end)

    def _is_swept(self, app: App, partition: int) -> bool:
        """Whether there are no rows but those in force."""
        rows = self._rows(self._kafka.logs[TP(app.funnel, partition)].ever_committed())
        position = decode_position(rows.pop(POSITION_KEY))
        return all(generation_of(key) == position.generation for key in rows)

    # The verdict

    def _check_reasons(self) -> None:
        if self._moved:
            raise Violation(self._moved)
        for worker in [*self._workers, *self._operators]:
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
                else self._may_refuse(worker)
                if isinstance(reason, TablesWrong)
                else worker.started_as.partitions != self.partitions
                if isinstance(reason, TopicsWrong)
                else self.counts["markers left out"] > 0 or isinstance(worker, Operator)
                if isinstance(reason, Mended)
                else isinstance(reason, TakenOver)
            )
            if not is_true:
                raise Violation(f"{worker.name} ended by {reason!r}") from reason
            if isinstance(reason, TablesWrong) and not self._has_former_settings(worker):
                worker.group.is_refused = True

    def _may_refuse(self, process: Process) -> bool:
        """Whether it is true that the tables cannot go on with the source, or are torn."""
        is_retained = any(self._kafka.logs[self._source(number)].start for number in range(self.partitions))
        if isinstance(process, Operator) and self._change == "copied":
            return is_retained
        # Amid faults, an operator may have adopted the topic after the process found it to be another one.
        is_foreign = bool(self._foreign) or (self._is_another and not self.is_calm)
        is_changed = process.group is self._groups[0] and (is_foreign or bool(self._cut_off))
        is_unproved = is_retained and not self._kafka.topic_id
        refuses = is_changed or is_unproved or bool(self._torn) or self._was_grown(process)
        return refuses or self._was_replaced(process)

    def _has_former_settings(self, process: Process) -> bool:
        return process.started_as.settings < process.group.app.settings

    def _was_replaced(self, process: Process) -> bool:
        """Whether rows of its fold have been derived anew with other settings."""
        app = process.started_as
        return any(app.fold.id in position.replaced for position in self._positions(app).values())

    def _was_grown(self, process: Process) -> bool:
        """Whether its app has tables of a source with another number of partitions."""
        app = process.started_as
        return any(one.partitions not in (0, app.partitions) for one in self._positions(app).values())

    def _check_commit(self, app: App, tp: TP, offset: int) -> None:
        position = self.position(app, tp.partition)
        begin = position.offset if position else 0
        unwritten = self._kafka.logs[tp].committed(begin, offset)
        is_changed = self._is_another or tp.partition in self._cut_off
        if unwritten and not self.counts["markers left out"] and not is_changed:
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
            for entry in self._kafka.logs[self._source(number)].ever_committed():
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

    def _source_log(self, app: App, partition: int, position: Position) -> Any:
        """The records that the tables of a partition are made from."""
        # Of a copy, they may have read on without a word; tables that name the former topic have not.
        is_unread = self._change != "copied" or (position.topic_id and position.witness is None)
        is_former = app == self._groups[0].app and (
            partition in self._cut_off or (partition in self._foreign and is_unread)
        )
        return (self._kafka.former if is_former else self._kafka.logs)[self._source(partition)]

    def _judge_total(self) -> None:
        """Check that the app that counts now has counted each event of the source once, and where.

        Does nothing if retention took events before the app read them.
        """
        app = self._group.app
        if any(map(self._has_missed, range(app.partitions))):
            return
        expected: defaultdict[int, dict[tuple[str, str], Event]] = defaultdict(dict)
        for number in range(app.partitions):
            for entry in self._kafka.logs[self._source(number)].ever_committed():
                event = judge(entry.value, entry.key)
                if not isinstance(event, Rejected):
                    at = home_of(event, entry, app, number, app.partitions)
                    if at is not None:
                        expected[at][event.lead_id, event.event_id] = event
        for number in range(app.partitions):
            rows = self._rows(self._kafka.logs[TP(app.funnel, number)].ever_committed())
            record = rows.pop(POSITION_KEY, None)
            wrong = _differences(
                expected[number].values(), rows, decode_position(record) if record else NOTHING
            )
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
        position = decode_position(record) if record else NOTHING
        expected = _Expected(app, number, position.partitions or app.partitions)
        end = position.offset
        if self._change == "copied" and self._is_another and position.witness is not None:
            end = position.witness.offset + 1  # markers follow in the one topic, records in the other
        for entry in self._source_log(app, number, position).ever_committed():
            if entry.offset < end and not self._was_gone(f"{app.name}-{number}", entry.offset):
                expected.take(entry)
        astray.update(expected.astray)
        wrong = _differences(expected.applied, rows, position)
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
        self.counts["derivations"] += position.generation
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


NOTHING = Position(0, -1, "")


def _differences(events: Iterable[Event], rows: Mapping[bytes, bytes], position: Position) -> list[str]:
    """What of the rows in force is not as these events make it."""
    got = tables_of({**rows, POSITION_KEY: encode_position(position)}).rows
    fold = position.settings or App("", 0, "").fold
    return oracle.differences(oracle.tables(events, hangup_ms=fold.hangup_ms, timezone=fold.timezone), got)


class Sent(NamedTuple):
    """An event that an app sent home, from one partition to another."""

    app: str
    by: int
    to: int
    value: bytes


def home_of(event: Event, entry: Entry, app: App, number: int, partitions: int) -> int | None:
    """The partition where an app counts an event that lies in partition `number`; None if it refuses it."""
    if app.partitioner == "trust":
        return None if REROUTED in dict(entry.headers) else number
    at = home(event.lead_id.encode(), partitions, app.partitioner)
    is_stuck = at != number and entry.headers.count(mark_of(app, partitions)) >= LAPS
    return None if is_stuck else at


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
        at = home_of(event, entry, self._app, self._number, self._partitions)
        if at is None:
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
    "resume": 1,
    "time_out": 1,
    "change_source": 8,
    "adopt": 2,
    "grow": 1,
    "hear": 2,
    "anew": 1,
    "refold": 6,
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

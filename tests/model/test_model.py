"""The law holds in every schedule, and the schedules would notice if a rule of it did not.

`FUNNEL_MODEL_SCHEDULES` says how many schedules are run; `python -m model` runs them without pytest.
"""

import logging
import os
from collections import defaultdict
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from model.schedule import Rules, Runner, run_all
from model.worker import SOURCE, hanging
from msgspec.structs import replace

from callfunnel.agents.engine.adopt import _adopted
from callfunnel.agents.engine.ingest import Ingest
from callfunnel.agents.engine.rerouting import REROUTED
from callfunnel.agents.engine.source import resume_at
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.errors import WriteFailed
from callfunnel.schemas.events import Event
from callfunnel.streams.engine import Partition
from callfunnel.streams.log import Entry, entry_of
from callfunnel.streams.rows import LEADS_POSITION_KEY, POSITION_KEY, decode_position, encode_position

SCHEDULES = int(os.environ.get("FUNNEL_MODEL_SCHEDULES", "4000"))
CAUGHT_WITHIN = 15_000


@pytest.fixture(autouse=True)
def _quiet():
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.timeout(3_600)
def test_no_schedule_breaks_the_law():
    counts, broken = run_all(seed=1, schedules=SCHEDULES)
    assert broken is None, "\n".join(broken)
    assert counts["transactions"] > SCHEDULES
    assert counts["totals"] > SCHEDULES // 2
    for what in (
        "kills in a request",
        "failed requests",
        "zombies",
        "cut off",
        "refilled",
        "anew",
        "copied",
        "copied in part",
        "adoptions",
        "workers of the version before",
        "errors of recovery",
        "markers left out",
        "growths",
        "apps whose topics were grown",
        "apps that count anew",
        "misrouted",
        "stops that ended",
        "other settings",
        "derivations",
    ):
        assert counts[what] > SCHEDULES // 1000, what


# Each rule switched off


class TablesApart(Transactions):
    async def write(self, partition: int, records: Any) -> Any:
        last: dict[Any, int] = {}
        for tp, its_records in records.items():
            last |= await super().write(partition, {tp: its_records})
        return last


class NotFenced(Transactions):
    def __init__(self, app_id: str, client: Any, timeout: float) -> None:
        super().__init__(app_id + client["worker"].name, client, timeout)


class FailureIgnored(Transactions):
    async def write(self, partition: int, records: Any) -> Any:
        try:
            return await super().write(partition, records)
        except WriteFailed:
            return defaultdict(int)


class GroupOffset(Ingest):
    async def take_over(self, source: Any, generation: int) -> Any:
        positions = dict(await super().take_over(source, generation) or {})
        for tp in positions:
            self.lanes[tp.partition].state.offset = positions[tp] = self._app.group_offset(tp)
        return positions


class HolesIgnored(Ingest):
    async def _continuing(self, lane: Any, batch: Any) -> Any:
        return batch


class OverlapsApplied(Ingest):
    async def _process(self, lane: Any, fetched: Any) -> bool:
        lane.state.offset = min(lane.state.offset, fetched.start)
        return await super()._process(lane, fetched)


class AcknowledgedFirst(Ingest):
    async def take(self, event: Any) -> None:
        event.ack()
        unacked = self._app.unacked
        unacked.append(None)
        await super().take(SimpleNamespace(value=event.value, message=None, ack=lambda: unacked.remove(None)))


class RecoveryBelieved(Ingest):
    def _missing(self, *_: Any) -> None: ...


class RebalanceMissed(Ingest):
    async def take_over(self, source: Any, generation: int) -> Any:
        class Every(int):
            __ne__ = lambda *_: False  # noqa: E731

        return await super().take_over(source, Every())


class CutOffUnseen(Ingest):
    def _check_end(self, lane: Any, end: int) -> None: ...


async def believed(_: Any, positions: Any, found: Any) -> Any:
    return {number: position.offset for number, position in positions.items() if position}


def without_ids(number: int, position: Any, found: Any, record: Any) -> int:
    found = replace(found, topic_id=position.topic_id)
    return resume_at(number, position, found, record)


def without_witness(number: int, position: Any, found: Any, record: Any) -> int:
    return resume_at(number, position, found, record and position.witness)


class FetchedBelieved(Ingest):
    async def _check_topic(self, lane: Any) -> None: ...


def adopted_unseen(number: int, old: Any, found: Any, record: Any) -> Any:
    return replace(old, topic=found.topic, topic_id=found.topic_id)


def at_its_end(number: int, old: Any, found: Any, record: Any) -> Any:
    new = _adopted(number, old, found, record)
    return new and replace(new, offset=old.offset)


class MarksBelieved(Ingest):
    """As in a former version: an event that was moved once counts wherever it is."""

    async def _process(self, lane: Any, fetched: Any) -> bool:
        state, away = lane.state, Partition.away
        moved = {key for key, its in zip(fetched.keys, fetched.headers, strict=True) if REROUTED in dict(its)}
        state.away = lambda leads: {
            lead: number for lead, number in away(state, leads).items() if lead not in moved
        }
        return await super()._process(lane, fetched)


class GrowthUnseen(Ingest):
    def _check_source(self, found: Any) -> None: ...


def restored_anyway(self: Any, funnel: Any, leads: Any, restore: Any = Partition.restore) -> None:
    """As if the position did not name the number of the source's partitions."""
    for rows, key in ((funnel, POSITION_KEY), (leads, LEADS_POSITION_KEY)):
        if key in rows:
            rows[key] = encode_position(replace(decode_position(rows[key]), partitions=0))
    restore(self, funnel, leads)


def unseen(topics: str) -> Rules:
    """What hangs in topics whose names begin so is not seen."""

    async def but_one(client: Any, partitions: Any, headers: Any = ()) -> Any:
        found = await hanging(client, partitions, headers)
        return {at: tail for at, tail in found.items() if not at[0].startswith(topics)}

    return Rules(patches=(("callfunnel.agents.kafka.hanging.hanging", but_one),))


async def nothing_found(*_: Any) -> None: ...


class HolesNotCounted(Ingest):
    def _accept_hole(self, lane: Any, earliest: int) -> None:
        lane.state.offset = earliest


class LeftoversKept(Ingest):
    async def _sweep(self, lane: Any) -> None:
        if not lane.state.is_of_another_fold:
            await super()._sweep(lane)


class PoisonIgnored(Ingest):
    def _stops(self, at: Any) -> bool:
        return False


def aborted_too(log: Any, start: int, end: int) -> list[Any]:
    last = min(end, log.stable_end)
    return [entry for entry in log.entries if start <= entry.offset < last and not entry.is_marker]


_numbers = count()


def another_each_time(event: Event) -> Entry:
    """Whatever its id is, the event is one that was not seen before."""
    return entry_of(event)._replace(mark=next(_numbers))


SWITCHED_OFF = {
    "one transaction for all of a batch": Rules(transactions=TablesApart),
    "a former owner is fenced": Rules(transactions=NotFenced),
    "a failed write ends the worker": Rules(transactions=FailureIgnored),
    "the state says where to resume": Rules(ingest=GroupOffset),
    "a hole is fetched again": Rules(ingest=HolesIgnored),
    "an overlap is skipped": Rules(ingest=OverlapsApplied),
    "a batch is acknowledged after its transaction": Rules(ingest=AcknowledgedFirst),
    "recovery is not believed": Rules(ingest=RecoveryBelieved),
    "a partition is taken over in one generation": Rules(ingest=RebalanceMissed),
    "a source that was cut off is noticed": Rules(ingest=CutOffUnseen),
    "tables go on with their own topic alone": Rules(
        patches=(("callfunnel.agents.engine.ingest.resume_all", believed),)
    ),
    "the id of the topic is that of the tables": Rules(
        patches=(("callfunnel.agents.engine.source.resume_at", without_ids),)
    ),
    "the witness lies where it lay": Rules(
        patches=(("callfunnel.agents.engine.source.resume_at", without_witness),)
    ),
    "a batch is of the topic that has its id after it came": Rules(ingest=FetchedBelieved),
    "a topic is adopted by its records": Rules(
        patches=(("callfunnel.agents.engine.adopt._adopted", adopted_unseen),)
    ),
    "an adopted topic is read behind the witness": Rules(
        patches=(("callfunnel.agents.engine.adopt._adopted", at_its_end),)
    ),
    "what retention took is counted": Rules(ingest=HolesNotCounted),
    "what Kafka left undecided is decided first": unseen("leads"),
    "rerouted events that hang are committed": unseen(SOURCE),
    "dead letters that hang are decided as the tables say": unseen("dead letters"),
    "both changelogs are decided as letters say": Rules(
        patches=(("callfunnel.agents.kafka.hanging.last", nothing_found),)
    ),
    "an event counts at its lead's home alone": Rules(ingest=MarksBelieved),
    "a source that has grown is noticed": Rules(ingest=GrowthUnseen),
    "tables are of the source's number of partitions": Rules(
        patches=(("callfunnel.streams.engine.Partition.restore", restored_anyway),)
    ),
    "moving ends": Rules(patches=(("callfunnel.agents.engine.rerouting.LAPS", 1_000_000),)),
    "where publishers are trusted, what was moved is refused": Rules(
        patches=(("callfunnel.streams.by_definition.DefinedTables.refuse", lambda *_: None),)
    ),
    "what a derivation left that broke off is deleted": Rules(ingest=LeftoversKept),
    "a poisoned partition stands still until it may go on": Rules(ingest=PoisonIgnored),
    "an event counts once": Rules(
        patches=(("callfunnel.streams.by_definition.entry_of", another_each_time),)
    ),
    "what was aborted is never read": Rules(patches=(("model.kafka.Log.committed", aborted_too),)),
    "a rebalance waits for no refused batch": Rules(patches=(("model.worker.Worker.drop", lambda *_: None),)),
}


@pytest.mark.parametrize("rule", SWITCHED_OFF)
def test_without_the_rule_a_schedule_is_found_that_breaks_the_law(rule):
    with Runner(SWITCHED_OFF[rule]) as runner:
        found = runner.first_violation(CAUGHT_WITHIN)
    assert found is not None
    count, broken = found
    print(f"{rule}: caught after {count} schedules\n{broken.notes[-1]}")

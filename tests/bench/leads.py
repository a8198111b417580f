"""What leads cost a worker that are not ordinary: one that all events are of, and old ones that come back.

The tables are the worker's own and are filled in this process; no broker is needed. All ids are UUIDs.
"""

import random
import statistics
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any
from uuid import UUID

import click

from bench import load, machine
from callfunnel.agents import memory
from callfunnel.agents.choice import tables_for
from callfunnel.agents.config import Settings
from callfunnel.agents.demo import generator
from callfunnel.agents.kafka.producer import Compressor, Producer, batches
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams.engine import Partition
from callfunnel.streams.fold import Fold
from callfunnel.streams.funnel import Change
from callfunnel.streams.panes import Bounds, resolutions
from callfunnel.streams.tables import MOST_EVENTS, Tables
from integration.workers import Event, Record, record

SEED = 7
BATCH = 20_000
HOT_EVENTS = 4_000
LAST = 100
"""So many events before the limit are the dearest of a hot lead."""
GOALS = {
    "hot_lead_changelog_bytes": 20_000,
    "hot_lead_cpu_us": 60,
    "hot_lead_changelog_bytes_at_the_limit": 20_000,
    "hot_lead_cpu_us_at_the_limit": 60,
    "old_lead_more_cpu_us": 1.5,
}


def fold() -> Fold:
    return Fold(
        hangup_ms=15_000,
        late_ms=60_000,
        lead_events=MOST_EVENTS,
        timezone="UTC",
        partitioner="murmur2",
        resolutions=resolutions(),
    )


def new_uuid(chance: random.Random) -> str:
    return str(UUID(int=chance.getrandbits(128), version=4))


class Uuids(dict[str, str]):
    """A UUID for each id, the same each time."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._chance = chance

    def __missing__(self, id_: str) -> str:
        uuid = self[id_] = new_uuid(self._chance)
        return uuid

    def of(self, event: Any) -> Event:
        """The event with other ids, its own among them, which no second event has."""
        ids = {name: self[event[name]] for name in ("lead_id", "call_id") if name in event}
        return event | ids | {"event_id": new_uuid(self._chance)}


def of_a_hot_lead(events: int) -> list[Record]:
    """The events of a floor whose call system has one id for every lead."""
    uuids = Uuids(random.Random(SEED))
    floor = generator.live(SEED, generator.FloorSettings(seats=5_000), load.START_MS)
    lead_id = uuids["everyone"]
    return [record(uuids.of(event) | {"lead_id": lead_id}, at_ms) for at_ms, event in islice(floor, events)]


def bytes_sent(changes: Iterable[Change], compressor: Compressor) -> int:
    """Of the record batches that are appended to a changelog."""
    records = ((change, [], None) for change in changes)
    sent = batches(object.__new__(Producer), records, load.START_MS, compressor)
    return sum(len(batch._build()) for batch in sent)


def hot_lead(events: int) -> dict[str, float]:
    """Batches of one event of the same lead."""
    records = of_a_hot_lead(events)
    partition = Partition(0, 1, fold(), Decoder(Limits(clock="event")), tables_for("auto"))
    compressor = Compressor(Settings().changelog_compression)
    sizes, cpu_us = [], []
    for offset, (value, key, at_ms) in enumerate(records):
        began = time.thread_time_ns()
        effects = partition.apply([value], [key], [at_ms], offset + 1)
        cpu_us.append((time.thread_time_ns() - began) / 1000)
        sizes.append(bytes_sent(effects.funnel, compressor) + bytes_sent(effects.leads, compressor))
    limit = min(events, MOST_EVENTS)
    return {
        "hot_lead_changelog_bytes": statistics.mean(sizes),
        "hot_lead_cpu_us": statistics.mean(cpu_us),
        "hot_lead_changelog_bytes_at_the_limit": statistics.mean(sizes[limit - LAST : limit]),
        "hot_lead_cpu_us_at_the_limit": statistics.mean(cpu_us[limit - LAST : limit]),
        "hot_lead_cpu_us_beyond_the_limit": statistics.mean(cpu_us[limit:] or [0.0]),
    }


def event_of(lead_id: str, step: int, number: int, at_ms: int, chance: random.Random) -> Event:
    ids = {"event_id": new_uuid(chance), "call_id": new_uuid(chance)}
    return load.event(lead_id, step, number, 1_000, at_ms) | ids


def in_batches(events: Iterator[Event]) -> Iterator[list[Record]]:
    while batch := [record(event) for event in islice(events, BATCH)]:
        yield batch


def filled(leads: int, chance: random.Random) -> tuple[Tables, list[str]]:
    """Tables with so many leads of one event or two, and the ids."""
    ids = [new_uuid(chance) for _ in range(leads)]
    tables = tables_for("auto")(fold(), Decoder(Limits(clock="event")))

    def events() -> Iterator[Event]:
        for number, lead_id in enumerate(ids):
            for step in range(1 + number % 2):
                yield event_of(lead_id, step, number, load.START_MS + number * 3_600_000 // leads, chance)

    for batch in in_batches(events()):
        added(tables, batch)
    return tables, ids


def added(tables: Tables, batch: list[Record]) -> None:
    values, keys, timestamps = map(list, zip(*batch, strict=True))
    verdicts = tables.decode(values, keys, timestamps)
    tables.new_leads(verdicts, keys)
    tables.add(verdicts, keys, timestamps, {}, Bounds(load.START_MS), range(len(batch)))


class OldLeads:
    """Tables with so many leads, each of which may have an event again."""

    def __init__(self, leads: int, chance: random.Random) -> None:
        self._tables, self._ids = filled(leads, chance)
        self._chance = chance
        self._next_ms = load.START_MS + 3_600_000

    def cpu_us(self) -> float:
        """What an event of a batch takes, each of a random lead."""
        events = [
            event_of(self._chance.choice(self._ids), 3, number, self._next_ms + number, self._chance)
            for number in range(BATCH)
        ]
        self._next_ms += BATCH
        (batch,) = in_batches(iter(events))
        began = time.thread_time()
        added(self._tables, batch)
        return (time.thread_time() - began) / BATCH * 1e6


def old_leads(few: int, many: int, batches: int) -> dict[str, float]:
    """Batches of large tables, each beside one of small ones that are new: the logs in those would grow."""
    chance = random.Random(SEED)
    large = OldLeads(many, chance)
    pairs = [(OldLeads(few, chance).cpu_us(), large.cpu_us()) for _ in range(batches)]
    return {
        "old_lead_cpu_us_of_few": statistics.median(one for one, _ in pairs),
        "old_lead_cpu_us_of_many": statistics.median(other for _, other in pairs),
        "old_lead_more_cpu_us": statistics.median(other - one for one, other in pairs),
    }


@click.command(help=__doc__)
@click.option("--events", default=HOT_EVENTS, show_default=True, help="Events of the hot lead.")
@click.option("--few", default=10_000, show_default=True, help="Leads in the small tables.")
@click.option("--many", default=1_000_000, show_default=True, help="Leads in the large tables.")
@click.option("--batches", default=15, show_default=True, help="Batches of old leads; the medians are shown.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(events: int, few: int, many: int, batches: int, report: Path | None) -> None:
    click.echo(f"{events:,} events of one lead …", err=True)
    figures = hot_lead(events)
    click.echo(f"filling tables with {few:,} and with {many:,} leads …", err=True)
    memory.prepare()
    figures |= old_leads(few, many, batches)
    machine.tell(figures, GOALS, report)


if __name__ == "__main__":
    main()

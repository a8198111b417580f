"""How soon a worker has a million leads back, and the rows that go with them.

The events of the generator's floor, with UUIDs for all ids, are folded in this process. The last value of
each key of both changelogs is written to the broker, which is what compaction leaves. Three workers start,
each with its view: one on empty changelogs, one on the leads alone, one on leads and rows. Each is measured
up to its first page with numbers.
"""

import random
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import click
import msgspec

from bench import load, machine
from bench.leads import Uuids
from bench.starts import settings_of, start, write
from callfunnel.agents import memory
from callfunnel.agents.choice import tables_for
from callfunnel.agents.config import Settings
from callfunnel.agents.demo import generator
from callfunnel.agents.engine.worker import partitions_of
from callfunnel.agents.kafka import topics
from callfunnel.schemas.events import STAGES, TYPES
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from callfunnel.streams.funnel import Change
from callfunnel.streams.partitioning import homes
from callfunnel.streams.rows import LEADS_POSITION_KEY, POSITION_KEY
from deploy.kafka import kraft
from faults.stream import Counters
from faults.watch import business
from integration.workers import Record, record

SEED = 7
PARTITIONS = 4
SEATS = 5_000
EVENTS_AT_ONCE = 20_000
GOALS = {"cpu_seconds_to_ready": 5.0, "cpu_us_of_a_record": 2.0, "resident_bytes_of_a_lead": 230}

Changelog = dict[bytes, bytes]
"""The last value of each key of one partition, in the order in which they were written."""


class Left(msgspec.Struct):
    """What compaction leaves of both changelogs, and the events that a page must show of it."""

    funnel: list[Changelog]
    leads: list[Changelog]
    events: Counters

    def sizes(self) -> dict[str, int]:
        """Rows and leads: the records without positions."""
        positions = {POSITION_KEY, LEADS_POSITION_KEY}
        tables = {"funnel": self.funnel, "leads": self.leads}
        return {
            name: sum(len(changelog.keys() - positions) for changelog in changelogs)
            for name, changelogs in tables.items()
        }

    def bytes_of_a_lead(self) -> float:
        """Of an id and a log, on average."""
        return statistics.mean(len(id_) + len(log) for leads in self.leads for id_, log in leads.items())

    def without_rows(self) -> "Left":
        return Left([{POSITION_KEY: its[POSITION_KEY]} for its in self.funnel], self.leads, {})


def folded(settings: Settings, leads: int) -> Left:
    """Fold the events of the floor until there are so many leads."""
    tables = tables_for("auto")
    new_partition = partitions_of(settings, PARTITIONS, tables)
    partitions = [new_partition(number) for number in range(PARTITIONS)]
    home_of_all = homes(PARTITIONS, settings.partitioner, tables.murmur2_of_all)
    uuids = Uuids(random.Random(SEED))
    floor = generator.live(SEED, generator.FloorSettings(seats=SEATS), load.START_MS)
    left, events = Left([{} for _ in partitions], [{} for _ in partitions], {}), Counter[tuple[str, ...]]()
    with click.progressbar(length=leads, label="folding leads", file=sys.stderr) as bar:
        while bar.pos < leads:
            batch = []
            for at_ms, event in islice(floor, EVENTS_AT_ONCE):
                stage = TYPES[event["type"]].stage
                if stage is not None and event.get("answered_by") != "machine":
                    events[STAGES[stage], event["campaign"], event["source"]] += 1
                batch.append(record(uuids.of(event), at_ms))
            home_of = home_of_all({one.key for one in batch})
            by_home = defaultdict[int, list[Record]](list)
            for one in batch:
                by_home[home_of[one.key]].append(one)
            for number, its in by_home.items():
                # The source topic stays empty, so the positions must not point behind its offset 0.
                effects = partitions[number].apply(*map(list, zip(*its, strict=True)), end=0)
                keep(left.funnel[number], effects.funnel)
                keep(left.leads[number], effects.leads)
            bar.update(sum(partition.tables.sizes()[1] for partition in partitions) - bar.pos)
    left.events = dict(events)
    return left


def keep(changelog: Changelog, changes: Iterable[Change]) -> None:
    for key, value in changes:
        changelog.pop(key, None)
        if value is not None:
            changelog[key] = value


def fill(settings: Settings, left: Left, batch: int) -> None:
    """Create the topics and write the changelogs, in record batches of at most `batch` records."""
    topics.create(settings)
    app_id = settings.app_id
    for topic, its in ((funnel_changelog(app_id), left.funnel), (leads_changelog(app_id), left.leads)):
        changes = ((number, change) for number, changelog in enumerate(its) for change in changelog.items())
        write(settings, topic, changes, batch)


def sample(page: str, name: str) -> float:
    return next(float(line.rpartition(" ")[2]) for line in page.splitlines() if line.startswith(name))


def differences(page: str, left: Left) -> list[str]:
    """What the page of a worker shows that is not what was written."""
    wrong = []
    for table, n in left.sizes().items():
        held = sample(page, f'callfunnel_worker_table_rows{{table="{table}"}}')
        if held != n:
            wrong.append(f"the {table} changelog has {n:,} records, and the worker holds {held:,.0f} of them")
    shown = business(page)
    if shown != left.events:
        wrong.append(f"{sum(left.events.values()):,} events were counted, {sum(shown.values()):,} are shown")
    return wrong


@click.command(help=__doc__)
@click.option("--leads", default=1_000_000, show_default=True)
@click.option("--batch", default=8, show_default=True, help="Most records in a record batch.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(leads: int, batch: int, report: Path | None) -> None:
    memory.prepare()
    started, wrong = [], []
    with kraft.Cluster() as kafka:
        own = [
            settings_of(kafka.address, f"recovery-{n}", clock="event", partitions=PARTITIONS)
            for n in range(3)
        ]
        whole = folded(own[0], leads)
        for settings, left in zip(own, (Left([], [], {}), whole.without_rows(), whole), strict=True):
            click.echo(f"a start on {sum(left.sizes().values()):,} records …", err=True)
            fill(settings, left, batch)
            started.append(start(settings))
            wrong += differences(started[-1].page, left)
    empty, of_leads, full = started
    held = whole.sizes()
    read = held["leads"] + 2 * held["funnel"]
    figures = {
        "leads": held["leads"],
        "rows": held["funnel"],
        "bytes_of_a_lead": whole.bytes_of_a_lead(),
        "cpu_seconds_to_ready": full.cpu_seconds,
        "cpu_seconds_to_ready_without_records": empty.cpu_seconds,
        "cpu_us_of_a_record": (full.cpu_seconds - empty.cpu_seconds) / read * 1e6,
        "cpu_us_of_a_lead": (of_leads.cpu_seconds - empty.cpu_seconds) / held["leads"] * 1e6,
        "seconds_to_ready": full.seconds,
        "memory_mib": full.memory_mib,
        "resident_bytes_of_a_lead": (of_leads.memory_mib - empty.memory_mib) * 2**20 / held["leads"],
    }
    for line in wrong:
        click.echo(f"WRONG: {line}")
    machine.tell(figures, GOALS, report)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()

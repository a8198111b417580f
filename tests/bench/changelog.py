"""What a worker writes to its changelogs for an event, and what each compression makes of it.

The floor has 5,000 seats, all ids are UUIDs. The tables and the record batches are the worker's own; no
broker is needed, and what it keeps beside the batches is in no figure. `--month` tells instead what a floor
of 200 seats leaves on a broker's disk in 22 days of 8 hours.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator
from itertools import islice, takewhile
from pathlib import Path
from typing import get_args

import click
import msgspec

from bench import load, machine
from bench.leads import Uuids, bytes_sent, fold
from callfunnel.agents import memory
from callfunnel.agents.choice import tables_for
from callfunnel.agents.config import Compression
from callfunnel.agents.demo import generator
from callfunnel.agents.kafka.producer import Compressor
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams.engine import Partition
from callfunnel.streams.funnel import Change
from callfunnel.streams.rows import LEADS_POSITION_KEY, POSITION_KEY, decode_key
from integration.workers import Record, record

SEED = 7
BEFORE = 100_000
"""So many events are in the tables before: a floor has leads that are called again."""
SIZES = {20_000: 200_000, 2_000: 100_000, 100: 20_000, 5: 5_000}
"""Events of a batch, and how many of them are measured."""
HOURS, DAYS = 8, 22
"""Of a month of work."""
GOALS = {20_000: 80.0}
"""Bytes of an event, by the size of a batch, with the compression that is the default."""
DEFAULT: Compression = "zstd"

Written = tuple[list[Change], list[Change]]
"""What one transaction appends to the funnel changelog and to that of the leads."""


class Figure(msgspec.Struct):
    bytes_of_an_event: float
    cpu_us_of_an_event: float
    """To make the record batches."""


def written(records: list[Record], size: int, before: int = BEFORE) -> list[Written]:
    """By transaction, behind the first records."""
    partition = Partition(0, 1, fold(), Decoder(Limits(clock="event")), tables_for("auto"))
    offset, made = 0, []
    while offset < len(records):
        batch = records[offset : offset + (size if offset >= before else 20_000)]
        offset += len(batch)
        values, keys, timestamps = map(list, zip(*batch, strict=True))
        effects = partition.apply(values, keys, timestamps, offset)
        if offset > before:
            made.append((effects.funnel, effects.leads))
    return made


def by_kind(made: list[Written]) -> Counter[str]:
    """Bytes of keys and values."""
    found = Counter[str]()
    for key, value in (change for both in made for changes in both for change in changes):
        found[kind_of(key)] += len(key) + len(value or b"")
    return found


def kind_of(key: bytes) -> str:
    if key in (POSITION_KEY, LEADS_POSITION_KEY):
        return "positions"
    if key[0] < 0x80:  # rows have keys in msgpack, leads are text
        return "leads"
    return f"rows of {decode_key(key)[0]}"


def packed(made: list[Written], compression: Compression, events: int) -> Figure:
    compressor, began = Compressor(compression), time.thread_time()
    size = sum(bytes_sent(changes, compressor) for both in made for changes in both)
    return Figure(size / events, (time.thread_time() - began) / events * 1e6)


def a_month() -> dict[str, float]:
    """MB of one copy. A day is folded on one partition, in batches that gathered for half a second.

    In a changelog that is compacted the last record of each key is left, in a record batch with what was
    written at the same time and is left, too; here it is alone in one, which is the most that it can take.
    What was written within the last two hours is there as it was written.
    """
    end_ms = load.START_MS + HOURS * 3_600_000
    records = list(takewhile(lambda one: one.at_ms < end_ms, floor_of(200)))
    compressor, sent, tables = Compressor(DEFAULT), 0, {}
    size = max(1, len(records) // (HOURS * 3_600 * 2))
    for funnel, leads in written(records, size, before=0):
        sent += bytes_sent(funnel, compressor) + bytes_sent(leads, compressor)
        tables |= dict(funnel) | dict(leads)
    left = [(key, value) for key, value in tables.items() if value is not None]
    by_day = Counter[str]()
    for change in left:
        kind = kind_of(change[0])
        kept_days = DAYS if kind in ("leads", "rows of 1d") else 1
        by_day[kind.partition(" ")[0]] += bytes_sent([change], compressor) * kept_days
    return {
        "events_of_a_month": len(records) * DAYS,
        "source_mb": sum(len(one.value) + len(one.key) for one in records) * DAYS / 1e6,
        "leads_mb": by_day["leads"] / 1e6,
        "rows_mb": by_day["rows"] / 1e6,
        "not_compacted_mb": sent / HOURS * 2 / 1e6,
    }


def floor_of(seats: int) -> Iterator[Record]:
    uuids = Uuids(random.Random(SEED))
    live = generator.live(SEED, generator.FloorSettings(seats=seats), load.START_MS)
    return (record(uuids.of(event), at_ms) for at_ms, event in live)


@click.command(help=__doc__)
@click.option("--month", is_flag=True, help="What is on the disk after a month of a floor of 200 seats.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(month: bool, report: Path | None) -> None:
    memory.prepare()
    if month:
        machine.tell(a_month(), {}, report)
        return
    records = list(islice(floor_of(5_000), BEFORE + max(SIZES.values())))
    figures: dict[int, dict[str, Figure]] = {}
    for size, events in SIZES.items():
        made = written(records[: BEFORE + events], size)
        kinds = ", ".join(f"{kind} {n / events:.1f}" for kind, n in by_kind(made).most_common())
        click.echo(f"batches of {size:,}: keys and values in bytes an event: {kinds}")
        figures[size] = {}
        for compression in get_args(Compression):
            figure = figures[size][compression] = min(
                (packed(made, compression, events) for _ in range(3)), key=lambda one: one.cpu_us_of_an_event
            )
            goal = GOALS.get(size) if compression == DEFAULT else None
            met = goal is not None and figure.bytes_of_an_event <= goal
            told = "" if goal is None else f"  (goal {goal:g}: {'met' if met else 'missed'})"
            click.echo(
                f"  {compression}: {figure.bytes_of_an_event:.1f} bytes, "
                f"{figure.cpu_us_of_an_event:.2f} CPU µs{told}"
            )
    machine.write(report, figures=figures)


if __name__ == "__main__":
    main()

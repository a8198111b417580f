"""`python -m bench.wide`, in the folder `tests`: what a wide floor costs, from the fold to the page.

A wide floor has many campaigns with many sources each, so nearly every event is of another segment. Events
are made up and folded in process, as a worker folds them; the view's table takes the changed rows, makes its
snapshot, and the page is rendered from it. No broker is needed. Figures are CPU time.
"""

import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from itertools import count, islice
from pathlib import Path

import click

from bench import machine
from bench.exposition import series_of
from callfunnel.agents import memory
from callfunnel.agents.choice import sums_for, tables_for
from callfunnel.agents.view.exposition import Exposition, new_registry
from callfunnel.agents.view.snapshot import Funnel, Snapshot, Standing
from callfunnel.schemas.codec import Decoder, Limits
from callfunnel.streams.fold import Fold
from callfunnel.streams.panes import Bounds, resolutions
from callfunnel.streams.rows import Position, encode_position
from integration.workers import Event, Record, record

GOALS = {
    "fold_us_an_event": 10.0,
    "take_us_an_event": 5.0,
    "snapshot_ms": 100.0,
    "page_ms": 150.0,
    "unlimited_page_us_a_series": 2.0,
}

START_S = 1_780_300_800
CAMPAIGNS, SOURCES, AGENTS, PLACES = 500, 20, 5_000, 50
PARTITIONS = 2
WARM_EVENTS, WARM_SECONDS = 240_000, 3_600
LIFE = ("lead_created", "dial", "connect", "dm_reached", "call_ended")
MOST = 1_000_000
"""A limit that no family reaches."""


def events(seed: int) -> Iterator[Event]:
    """What happens on the floor, without end and without times."""
    chance = random.Random(seed)
    leads: list[tuple[int, int]] = []
    numbers = count()
    while True:
        place = chance.randrange(20_000)
        if place >= len(leads):
            place = len(leads)
            leads.append((next(numbers), 0))
        lead, step = leads[place]
        leads[place] = (lead, step + 1) if step + 1 < len(LIFE) else (next(numbers), 0)
        segment = lead // PARTITIONS * 7_919 % (CAMPAIGNS * SOURCES)
        agent = chance.randrange(AGENTS)
        yield {
            "event_id": f"{lead}-{step}", "type": LIFE[step],
            "lead_id": f"lead-{lead:09d}", "call_id": f"call-{lead}",
            "campaign": f"campaign-{segment // SOURCES}", "source": f"source-{segment % SOURCES}",
            "agent": f"agent-{agent}", "team": f"team-{agent // 12}",
            "location": f"place-{agent % PLACES}",
        }  # fmt: skip


def at(happened: Iterable[Event], n: int, start_s: float, seconds: float) -> Iterator[Record]:
    """The next `n` of these events, evenly over so many seconds from a moment on."""
    for number, event in enumerate(islice(happened, n), start=1):
        yield record(event | {"occurred_at": int((start_s + seconds * number / n) * 1000)})


class Floor:
    """The tables of the partitions, the view's table that follows them, and what both cost."""

    def __init__(self, seed: int) -> None:
        self._events = events(seed)
        self._clock_s: float = START_S
        fold = Fold(15_000, 600_000, 1_000, "UTC", "murmur2", resolutions())
        decoder = Decoder(Limits(clock="event", until_ms=(START_S + 86_400) * 1000))
        self._tables = [tables_for("auto")(fold, decoder) for _ in range(PARTITIONS)]
        self._bounds = [Bounds(-1)] * PARTITIONS
        self._fold_id = fold.id
        self._offsets = [0] * PARTITIONS
        self.funnel = Funnel(UTC, new_sums=sums_for("auto"))
        self.now_s = START_S
        self.rows = 0

    def happen(self, events: int, seconds: float) -> tuple[float, float]:
        """Fold the next events and take their rows; CPU seconds of each."""
        batches = defaultdict[int, list[Record]](list)
        for one in at(self._events, events, self._clock_s, seconds):
            batches[one.key[-1] % PARTITIONS].append(one)  # by the last digit of the lead
        self._clock_s += seconds
        self.rows, folding, taking = 0, 0.0, 0.0
        for partition, batch in sorted(batches.items()):
            values, keys, timestamps = map(list, zip(*batch, strict=True))
            tables, bounds = self._tables[partition], self._bounds[partition]
            began = time.process_time()
            verdicts = tables.decode(values, keys, timestamps)
            effects = tables.add(verdicts, keys, timestamps, {}, bounds, range(len(batch)))
            folding += time.process_time() - began
            assert not effects.rejected, effects.rejected[0]
            self._bounds[partition] = Bounds(effects.watermark_ms)
            self._offsets[partition] += len(batch)
            position = Position(self._offsets[partition], effects.watermark_ms, self._fold_id)
            self.rows += len(effects.funnel) + 1
            self.now_s = max(self.now_s, effects.watermark_ms // 1000)
            began = time.process_time()
            self.funnel.advance(partition, encode_position(position))
            keys, values = zip(*effects.funnel, strict=True)
            self.funnel.take(partition, self.funnel.records_type.of(range(len(keys)), keys, values))
            taking += time.process_time() - began
        return folding, taking


def timed(work: Callable[[], object]) -> float:
    """CPU ms."""
    began = time.process_time()
    work()
    return (time.process_time() - began) * 1000


def anew(snapshots: list[Snapshot], of: Floor) -> None:
    """Take a snapshot in the place of the one before, whose end is a part of the price."""
    snapshots[:] = [of.funnel.snapshot(of.now_s)]


def measured(of_seed: int, warm: int, rate: int, rounds: int) -> dict[str, float]:
    its = Floor(of_seed)
    snapshots: list[Snapshot] = []
    numbers = lambda: Standing("current", snapshots[-1])  # noqa: E731
    page = Exposition(numbers, new_registry())
    unlimited = Exposition(numbers, new_registry(), series_limit=MOST)
    memory.prepare()
    for _ in range(60):
        its.happen(warm // 60, WARM_SECONDS / 60)
        anew(snapshots, its)  # spans are kept from the first one on
    found = defaultdict[str, list[float]](list)
    found["first_page_ms"].append(timed(lambda: page.render(False)))
    unlimited.render(False)
    for number in range(rounds):
        minute = its.now_s // 60
        folding, taking = its.happen(rate, 1)
        found["fold_us_an_event"].append(folding / rate * 1e6)
        found["take_us_an_event"].append(taking / rate * 1e6)
        found["rows_an_event"].append(its.rows / rate)
        snapshot_ms = timed(lambda: anew(snapshots, its))
        is_new = its.now_s // 60 != minute
        found["snapshot_of_a_new_minute_ms" if is_new else "snapshot_ms"].append(snapshot_ms)
        found["page_ms"].append(timed(lambda: page.render(False)))
        found["page_of_the_same_snapshot_ms"].append(timed(lambda: page.render(False)))
        if number % 5 == 0:
            found["unlimited_page_ms"].append(timed(lambda: unlimited.render(False)))
    figures = {name: statistics.median(each) for name, each in found.items()}
    figures |= {"series": series_of(page), "unlimited_series": series_of(unlimited)}
    figures["unlimited_page_us_a_series"] = figures["unlimited_page_ms"] * 1000 / figures["unlimited_series"]
    return figures


@click.command(help=__doc__)
@click.option("--warm", default=WARM_EVENTS, show_default=True, help="Events of the hour before.")
@click.option("--rate", default=5_000, show_default=True, help="Events a second.")
@click.option(
    "--rounds", default=20, show_default=True, help="Seconds that are measured; the medians are shown."
)
@click.option("--seed", default=20080505, show_default=True)
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(warm: int, rate: int, rounds: int, seed: int, report: Path | None) -> None:
    click.echo(f"folding the {warm:,} events of the hour before …", err=True)
    figures = measured(seed, warm, rate, rounds)
    machine.tell(figures, GOALS, report)


if __name__ == "__main__":
    main()

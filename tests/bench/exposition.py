"""`python -m bench.exposition`, in the folder `tests`: what a page of many series costs, and whom it delays.

The pages and the exposition are the worker's own; the rows are made up, no broker is needed. A loop like the
worker's ticks every millisecond beside them, while another process scrapes without a pause.
"""

import asyncio
import gc
import gzip
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import click

from bench import machine
from callfunnel.agents import memory
from callfunnel.agents.view.exposition import Exposition, new_registry
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import LOCATION, PERSON, SEGMENT, Funnel, Standing, View
from callfunnel.streams.rows import POSITION_KEY, Position, encode_columns, encode_key, encode_position

NOW_S = 1_780_300_800
TICK_SECONDS = 0.001
REFRESH_SECONDS = 0.5
GOALS = {"text_page_ms": 100.0, "openmetrics_page_ms": 100.0, "stall_max_ms": 20.0}

FORMATS = {"text": "text/plain", "openmetrics": "application/openmetrics-text; version=1.0.0"}

COLUMNS = {
    "events_dialed": 7123, "events_connected": 2201, "events_reached": 1512, "leads_created": 900,
    "leads_dialed": 871, "leads_reached": 640, "awaited": 900, "attempt_60": 512, "attempt_900": 300,
    "attempt_ms": 9_012_345, "connect_300": 211, "connect_ms": 25_000_250, "uncalled": 29,
}  # fmt: skip


def filled(agents: int) -> Funnel:
    """The table of a floor: a campaign for ten agents, from two sources; a place for fifty."""
    funnel = Funnel(UTC)
    position = Position(offset=9, watermark_ms=NOW_S * 1000, fold="")
    funnel.apply(0, POSITION_KEY, encode_position(position))
    rows = [(PERSON, f"team-{n // 12}", f"agent-{n}") for n in range(agents)]
    rows += [(SEGMENT, f"campaign-{n // 2}", f"source-{n % 2}") for n in range(agents // 5)]
    rows += [(LOCATION, f"place-{n}") for n in range(agents // 50)]
    for row in rows:
        for resolution, pane in (("1m", NOW_S - 60), ("1h", NOW_S), ("1d", NOW_S), ("all", 0)):
            funnel.apply(0, encode_key((resolution, pane, *row)), encode_columns(COLUMNS))
    return funnel


def series_of(page: Exposition) -> int:
    return sum(len(family.rows) * len(family.layout) for family in page.families())


def funnel_with(series: int) -> tuple[Funnel, Exposition]:
    """A table whose page has at least so many series, and the page."""
    agents = series // 82
    while True:
        funnel = filled(agents)
        snapshot = funnel.snapshot(NOW_S)
        numbers = lambda: Standing("current", snapshot)  # noqa: B023, E731
        page = Exposition(numbers, new_registry(), series_limit=1_000_000)
        if series_of(page) >= series:
            return funnel, page
        agents += agents // 20 + 1


def cpu_ms(work: Callable[[], Any]) -> float:
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1000


def rendering(funnel: Funnel, rounds: int) -> dict[str, float]:
    """CPU ms by format: the first page, then the median for a new snapshot and for the one of before."""
    found = {}
    for name in FORMATS:
        snapshot = funnel.snapshot(NOW_S)
        numbers = lambda: Standing("current", snapshot)  # noqa: B023, E731
        page = Exposition(numbers, new_registry(), series_limit=1_000_000)
        openmetrics = name == "openmetrics"
        found[f"{name}_first_page_ms"] = cpu_ms(lambda: page.render(openmetrics))  # noqa: B023
        new, same = [], []
        for _ in range(rounds):
            snapshot = funnel.snapshot(NOW_S)
            new.append(cpu_ms(lambda: page.render(openmetrics)))  # noqa: B023
            same.append(cpu_ms(lambda: page.render(openmetrics)))  # noqa: B023
        found[f"{name}_page_ms"] = statistics.median(new)
        found[f"{name}_page_of_the_same_snapshot_ms"] = statistics.median(same)
    return found


def scraped(url: str, until: float) -> int:
    """Fetch the page in every format, plain and zipped, without a pause; how many came."""
    pages = 0
    while time.monotonic() < until:
        for accept in FORMATS.values():
            for encoding in ("identity", "gzip"):
                request = Request(f"{url}metrics", headers={"Accept": accept, "Accept-Encoding": encoding})
                with urlopen(request, timeout=30) as answer:
                    body = answer.read()
                if encoding == "gzip":
                    gzip.decompress(body)
                pages += 1
    return pages


async def delays(seconds: float) -> list[float]:
    """How much later than asked each tick of this loop comes, in ms."""
    late = []
    until = time.monotonic() + seconds
    while (began := time.monotonic()) < until:
        await asyncio.sleep(TICK_SECONDS)
        late.append((time.monotonic() - began - TICK_SECONDS) * 1000)
    return late


def stalls(funnel: Funnel, seconds: float) -> dict[str, float]:
    """The delays of a loop beside the pages: while nobody asks, and while somebody always does."""
    view = View({}, "", zone=UTC)
    view.snapshot = funnel.snapshot(NOW_S)
    numbers = lambda: Standing("current", view.snapshot)  # noqa: E731
    exposition = Exposition(numbers, new_registry(), series_limit=1_000_000)
    pages = Pages("127.0.0.1", 0, view=view, exposition=exposition, not_ready=lambda: None)
    done = threading.Event()

    def refresh() -> None:
        while not done.wait(REFRESH_SECONDS):
            view.snapshot = funnel.snapshot(NOW_S)

    pages.start()
    refreshing = threading.Thread(target=refresh)
    refreshing.start()
    memory.prepare()
    try:
        quiet = asyncio.run(delays(seconds))
        command = [sys.executable, "-m", "bench.exposition", "--scrape", pages.url, "--seconds", str(seconds)]
        scraper = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        busy = asyncio.run(delays(seconds))
        pages_told, _ = scraper.communicate(timeout=60)
    finally:
        done.set()
        refreshing.join()
        pages.stop()
    gc.unfreeze()
    return {
        "scrapes": float(pages_told),
        "scrapes_per_second": float(pages_told) / seconds,
        "stall_unscraped_max_ms": max(quiet),
        "stall_p99_ms": statistics.quantiles(busy, n=100)[98],
        "stall_max_ms": max(busy),
    }


@click.command(help=__doc__)
@click.option("--series", default=100_000, show_default=True, help="Series on the page, at least.")
@click.option("--rounds", default=15, show_default=True, help="Pages of each kind; medians are told.")
@click.option("--seconds", default=10.0, show_default=True, help="How long to scrape.")
@click.option("--scrape", metavar="URL", hidden=True, help="Be the process that scrapes.")
@click.option("--json", "report", type=click.Path(path_type=Path), help="Write all figures to a file.")
def main(series: int, rounds: int, seconds: float, scrape: str | None, report: Path | None) -> None:
    if scrape:
        click.echo(scraped(scrape, time.monotonic() + seconds))
        return
    click.echo(f"making a table with a page of {series:,} series …", err=True)
    funnel, page = funnel_with(series)
    figures: dict[str, float] = {"series": series_of(page), "page_mib": len(page.render(False)) / 2**20}
    click.echo("rendering …", err=True)
    figures |= rendering(funnel, rounds)
    click.echo(f"scraping for {seconds:g} s …", err=True)
    figures |= stalls(funnel, seconds)
    machine.tell(figures, GOALS, report)


if __name__ == "__main__":
    main()

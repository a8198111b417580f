"""`python -m e2e.screenshots`, in the folder `tests`: pictures for the README, of a floor that really runs.

A hundred seats have been at work for two hours when they are taken: the same seed and the same hours back
from now, so that they tell the same story each time.
"""

import io
import json
import re
import sys
import tempfile
import time
import urllib.request
from contextlib import redirect_stdout
from itertools import takewhile
from pathlib import Path

import orjson
from e2e.browser import PHONE, Browser, Page, program
from rich.console import Console

from callfunnel.agents.config import Settings
from callfunnel.agents.demo import generator
from callfunnel.agents.demo.broker import EmbeddedBroker
from callfunnel.agents.kafka import topics
from callfunnel.agents.view.terminal import funnel_table
from integration.workers import ROOT, Publishing, Record, Workers, publish

FOLDER = ROOT / ".github/pictures"
HOURS = 2.0
LIVE_SECONDS = 20
DESK = 1000
TOP_COLUMNS = 80


def main() -> int:
    if program() is None:
        print("No Chromium is installed (Debian: apt-get install chromium).", file=sys.stderr)
        return 69
    told = io.StringIO()
    try:
        with redirect_stdout(told):  # what the workers said is of interest only when something went wrong
            taken = pictures()
    except BaseException:
        print(told.getvalue(), file=sys.stderr)
        raise
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, content in taken.items():
        (FOLDER / name).write_bytes(content)
        print(f"{(FOLDER / name).relative_to(ROOT)}  {len(content) // 1024} kB")
    return 0


def pictures() -> dict[str, bytes]:
    """By the name of their files."""
    taken = {}
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as folder:
        settings = Settings.from_environ(
            {},
            broker=broker.address,
            profile="development",
            partitions=4,
            wait_seconds=10.0,
            grafana_url="http://localhost:3000",
        )
        topics.create(settings)
        past, coming = floor(int(time.time() * 1000))
        publish(settings, past)
        with Workers(settings, Path(folder)) as crew:
            url = crew.start().wait_until_ready().url
            with Publishing(settings, coming, LIVE_SECONDS), Browser() as browser:
                for name, width, dark in (
                    ("page-light", DESK, False),
                    ("page-dark", DESK, True),
                    ("phone-dark", PHONE, True),
                ):
                    with browser.open(f"{url}/?window=1h", width=width, dark=dark) as page:
                        taken[f"{name}.png"] = picture(page)
                taken["top.svg"] = terminal(url).encode()
    return taken


def floor(now_ms: int) -> tuple[list[Record], list[Record]]:
    """What the floor did until now, and what it does while the pictures are taken."""
    start_ms = now_ms - int(HOURS * 3_600_000)
    stream = generator.live(3, generator.FloorSettings(), start_ms, generator.TYPICAL_FAULTS)
    told = list(takewhile(lambda one: one[0] < now_ms + LIVE_SECONDS * 1000, stream))
    records = [
        (at_ms, Record(orjson.dumps(event), str(event["lead_id"]).encode(), at_ms)) for at_ms, event in told
    ]
    return (
        [record for at_ms, record in records if at_ms <= now_ms],
        [record for at_ms, record in records if at_ms > now_ms],
    )


def picture(page: Page) -> bytes:
    page.wait("document.getElementById('state').dataset.state === 'live'")
    assert page.complaints == []
    return page.picture()


def terminal(url: str) -> str:
    """What `callfunnel top` shows, as an SVG that needs nothing from elsewhere."""
    with urllib.request.urlopen(f"{url}/api/v1/funnel?window=1h") as answer:
        document = json.load(answer)
    console = Console(record=True, width=TOP_COLUMNS, file=io.StringIO(), force_terminal=True)
    console.print(funnel_table(document))
    svg = console.export_svg(title="callfunnel top", unique_id="top")
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code,", "")


if __name__ == "__main__":
    sys.exit(main())

"""A scraper that looks ten times a second and believes nothing.

The law it holds the workers to: while a process lives, no counter of its page decreases, none of the worker's
own goes, those of the business are there exactly while the view is current, and every page is one that
`promtool check metrics` accepts. promtool is asked once for each set of series, as its verdict does
not depend on the values; that these are numbers is checked on every page.
"""

import http.client
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

from faults.stream import Counters

_NUMBER = re.compile(r" (\S+)$", re.MULTILINE)
_COUNTER = re.compile(r"^(callfunnel_\w+_total(?:\{.*\})?) (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_CURRENT = 'callfunnel_view_state{state="current"} 1.0'
_SECONDS = 0.1


def fetch(port: int, path: str = "/metrics", timeout_seconds: float = 5.0) -> tuple[int, str]:
    """Status and body; status 0 when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except (OSError, http.client.HTTPException):
        return 0, ""
    finally:
        connection.close()


def counters(page: str) -> dict[str, float]:
    return {name: float(value) for name, value in _COUNTER.findall(page)}


Prefix = tuple[tuple[int, int], ...]
"""Partition and how many of its records; those of which there are some."""


def prefix_of(page: str) -> Prefix:
    """How many records of each partition of the source are in the numbers, as the page says itself."""
    found = Counter[int]()
    for labels, n in labelled(page, "callfunnel_source_records_total"):
        found[int(labels["partition"])] += int(n)
    return tuple(sorted((partition, n) for partition, n in found.items() if n))


def labelled(page: str, counter: str) -> Iterator[tuple[dict[str, str], float]]:
    """The samples of a counter: labels and value."""
    for name, value in counters(page).items():
        if name.startswith(f"{counter}{{"):
            yield dict(_LABEL.findall(name)), value


def business(page: str) -> Counters:
    """`callfunnel_events_total` by stage, campaign and source, without zeros."""
    return {
        (labels["funnel_stage"], labels["campaign"], labels["source"]): int(value)
        for labels, value in labelled(page, "callfunnel_events_total")
        if value
    }


class Promtool:
    """`promtool check metrics`, for each set of series once."""

    def __init__(self) -> None:
        self._program = shutil.which("promtool")
        self._known: set[str] = set()
        self._lock = threading.Lock()

    @property
    def is_there(self) -> bool:
        return self._program is not None

    def complaint(self, page: str) -> str | None:
        for value in _NUMBER.findall("\n".join(line for line in page.splitlines() if line[:1] != "#")):
            float(value)
        shape = _NUMBER.sub("", page)
        with self._lock:
            if self._program is None or shape in self._known:
                return None
            self._known.add(shape)
        told = subprocess.run(
            [self._program, "check", "metrics"], input=page, capture_output=True, text=True, check=False
        )
        return None if told.returncode == 0 else (told.stdout + told.stderr).strip()[:500]


class Answers:
    """When a page with numbers was had from any of the workers."""

    def __init__(self) -> None:
        self.longest_gap_seconds = 0.0
        self._last: float | None = None
        self._lock = threading.Lock()

    def note(self) -> None:
        with self._lock:
            now = time.monotonic()
            self.longest_gap_seconds = max(self.longest_gap_seconds, now - (self._last or now))
            self._last = now


class Watch:
    """Scrapes one port all through a run. `process` says which process it is at the moment."""

    def __init__(
        self, name: str, port: int, process: Callable[[], int], promtool: Promtool, answers: Answers
    ) -> None:
        self.name = name
        self.pages = 0
        self.complaints: list[str] = []
        self.shown: dict[Prefix, Counters] = {}
        """What pages of a current view said, by how many records of each partition are in it."""
        self._port = port
        self._process = process
        self._promtool = promtool
        self._answers = answers
        self._last: dict[int, dict[str, float]] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"watch {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def total(self, counter: str) -> float:
        """The sum of a counter's samples over all processes, as last seen of each."""
        return sum(
            value
            for page in self._last.values()
            for name, value in page.items()
            if name.partition("{")[0] == counter
        )

    def _run(self) -> None:
        while not self._done.wait(_SECONDS):
            before = self._process()
            status, page = fetch(self._port, timeout_seconds=2.0)
            if status != 200 or self._process() != before:
                continue
            if _CURRENT in page:
                self._answers.note()
                self._keep(page)
            self.pages += 1
            try:
                self._look(before, page)
            except ValueError as error:
                self.complaints.append(f"{self.name}: a value is no number: {error}")

    def _keep(self, page: str) -> None:
        prefix, said = prefix_of(page), business(page)
        before = self.shown.setdefault(prefix, said)
        if before != said:
            self.complaints.append(f"{self.name}: of {prefix} a page says {said}, and another said {before}")

    def _look(self, process: int, page: str) -> None:
        new, old = counters(page), self._last.get(process, {})
        its_own = {name for name in new if name.startswith("callfunnel_worker_")}
        if _CURRENT not in page:
            if shown := new.keys() - its_own:
                self.complaints.append(f"{self.name} (pid {process}): {shown} of a view that is not current")
            new = {name: n for name, n in old.items() if not name.startswith("callfunnel_worker_")} | new
        for name, value in old.items():
            if not new.get(name, -1.0) >= value:
                self.complaints.append(
                    f"{self.name} (pid {process}): {name} went from {value:g} to {new.get(name)}"
                )
        self._last[process] = new
        if complaint := self._promtool.complaint(page):
            self.complaints.append(f"{self.name}: promtool says {complaint}")

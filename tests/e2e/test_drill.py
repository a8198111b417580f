"""What goes wrong on a floor, from the event that is missing to the message that says so, and back to quiet.

Real workers, a real Prometheus with the rules of this repository, a real Alertmanager with its routes, and a
receiver at its webhooks. So that it takes two minutes instead of an hour, `shorten` changes these, and no
expression but the one that says where the floor is on the globe:

* how often Prometheus scrapes (15 s: 2 s) and evaluates (15 s: 1 s);
* how long a condition must last: `for` of business alerts ÷ 100 (5 min: 3 s), of engine alerts ÷ 12 (5 min:
  25 s), but not below 10 s, for Prometheus and workers take as long as ever to start; and `keep_firing_for`,
  which waits for those, ÷ 12;
* how long Alertmanager gathers (`group_wait` 30 s and `group_interval` 5 min: 2 s);
* `callfunnel:utc_offset_seconds`, so that it is Wednesday, 14:00, on the floor.

The windows of the funnel are as long as ever. The floor's events arrive some minutes after they happened, so
that a window of five minutes is about to end when its last event is told.
"""

import json
import os
import re
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest
import yaml
from e2e.prometheus import leave_out, to_wednesday_afternoon

from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import EmbeddedBroker, embedded_program, free_port, remove_dead_members
from callfunnel.agents.kafka import topics
from callfunnel.agents.view.exposition import Exposition, new_registry
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import View
from deploy.stack import HERE, Alert, Missing, Monitoring, Programs, Receiver
from integration.workers import Event, Record, Worker, Workers, publish, record
from patience import Deadline

MINUTE = 60
LEADS_PER_MINUTE = 10
DIALS_ARE_TOLD_AFTER = 230
"""Seconds. A dial of the last ten seconds is still in the window of five minutes when a minute begins."""
BUSINESS_IS_SHORTER, ENGINE_IS_SHORTER = 100, 12
PROMETHEUS_STARTS_SECONDS = 10
"""Prometheus looks for its targets every five seconds; until then all of them are down."""
GATHERS_SECONDS = 2
PATIENCE_SECONDS = 90.0


class Told(NamedTuple):
    receiver: str
    status: str
    alert: str


class Log:
    """What the receiver was told, in order."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.watched = 0
        """How often the watchdog was told; the others are not mixed with it."""

    def take(self, receiver: str, alert: Alert) -> None:
        if receiver == "watchdog":
            self.watched += 1
            return
        self.told.append(Told(receiver, alert["status"], alert["labels"]["alertname"]))

    def __len__(self) -> int:
        return len(self.told)

    def since(self, place: int, status: str) -> set[tuple[str, str]]:
        """Receivers and alerts."""
        return {(one.receiver, one.alert) for one in self.told[place:] if one.status == status}

    def __str__(self) -> str:
        return "\n".join(map(str, self.told)) or "nothing was told"


class Floor:
    """A floor that dials until it is told to stop, and the leads that come to it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._numbers = count(1)
        self._calls = count(1)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._ended = threading.Event()
        self.dials = True
        self.failure: BaseException | None = None

    def history(self) -> list[Record]:
        """An hour of leads, each called after half a minute, until the dials of `_run` go on."""
        now = time.time()
        end, events = now - DIALS_ARE_TOLD_AFTER - 30, []
        for number in range(60 * LEADS_PER_MINUTE):
            events += self.lead(end - number * MINUTE / LEADS_PER_MINUTE, called_after=30)
        return records(events)

    def lead(self, created: float, called_after: float | None = None, name: str | None = None) -> list[Event]:
        """A new lead, and the call to it."""
        lead = name or f"new-{next(self._numbers)}"
        events = [self.event("lead_created", created, lead)]
        return events + (self.call(created + called_after, lead) if called_after is not None else [])

    def call(self, dialed: float, lead: str) -> list[Event]:
        """Every fourth reaches a decision maker, of whom two thirds qualify."""
        number = next(self._calls)
        kinds = ["dial"]
        if number % 4 == 0:
            kinds += ["connect", "dm_reached", *(["qualified"] if number % 12 else [])]
        return [self.event(kind, dialed + after, lead) for after, kind in enumerate(kinds)]

    def event(self, kind: str, at: float, lead: str) -> Event:
        number = next(self._numbers)
        event = {"event_id": f"e{number}", "type": kind, "occurred_at": int(at * 1000), "lead_id": lead}
        more = {"connect": {"answered_by": "human"}}.get(kind, {})
        return event | {"campaign": "spring", "source": "web", "agent": "a-1", "team": "north"} | more

    def tell(self, events: list[Event]) -> None:
        publish(self._settings, records(events))

    def _run(self) -> None:
        try:
            while not self._ended.wait(1):
                if not self.dials:
                    continue
                now, events = time.time(), []
                for _ in range(2):
                    lead = f"cold-{next(self._numbers)}"
                    events += self.call(now - DIALS_ARE_TOLD_AFTER, lead)
                    events.append(self.event("call_ended", now, lead))
                self.tell(events)
        except BaseException as failure:
            self.failure = failure

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        if self.failure:
            raise self.failure


def records(events: list[Event]) -> list[Record]:
    return [record(event) for event in sorted(events, key=lambda event: event["occurred_at"])]


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m|h|d)", duration).groups()  # type: ignore[union-attr]
    return int(number) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[unit]


def expressions(folder: Path) -> dict[str, str]:
    return {
        rule.get("alert") or rule["record"]: rule["expr"]
        for file in sorted((folder / "prometheus/rules").glob("*.yml"))
        for group in yaml.safe_load(file.read_text())["groups"]
        for rule in group["rules"]
    }


def shorten(folder: Path) -> None:
    """See the head of this file."""
    config = folder / "prometheus/prometheus.yml"
    prometheus = yaml.safe_load(config.read_text())
    prometheus["global"] |= {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
    config.write_text(json.dumps(prometheus))  # JSON is YAML
    for file in (folder / "prometheus/rules").glob("*.yml"):
        rules = yaml.safe_load(file.read_text())
        for rule in (rule for group in rules["groups"] for rule in group["rules"]):
            if "for" in rule:
                lasts = seconds(rule["for"])
                if rule["labels"]["category"] == "business":
                    lasts /= BUSINESS_IS_SHORTER
                else:
                    lasts = max(PROMETHEUS_STARTS_SECONDS, lasts / ENGINE_IS_SHORTER)
                rule["for"] = f"{lasts:.0f}s"
            if "keep_firing_for" in rule:  # as long as engine alerts take
                rule["keep_firing_for"] = f"{seconds(rule['keep_firing_for']) / ENGINE_IS_SHORTER:.0f}s"
        file.write_text(json.dumps(rules))
    to_wednesday_afternoon(folder / "prometheus/rules")
    config = folder / "alertmanager/alertmanager.yml"
    alertmanager = yaml.safe_load(config.read_text())
    alertmanager["route"] |= dict.fromkeys(("group_wait", "group_interval"), f"{GATHERS_SECONDS}s")
    config.write_text(json.dumps(alertmanager))


@dataclass
class Drill:
    """Everything that runs, and what is asked of it."""

    settings: Settings
    crew: Workers
    floor: Floor
    monitoring: Monitoring
    log: Log
    ports: list[int]
    """Of two workers and a view."""

    def worker(self, port: int) -> Worker:
        return self.crew.start(http_port=port)

    def firing(self) -> set[str]:
        """By Prometheus, at this moment."""
        found = self.ask('ALERTS{alertstate="firing", alertname!="Watchdog"}')
        return {one["metric"]["alertname"] for one in found}

    def inhibited(self) -> set[str]:
        """By Alertmanager, at this moment."""
        alerts = get(f"{self.monitoring.alertmanager}/api/v2/alerts?inhibited=true")
        return {one["labels"]["alertname"] for one in alerts if one["status"]["inhibitedBy"]}

    def active(self) -> set[str]:
        """In Alertmanager, inhibited or not."""
        alerts = get(f"{self.monitoring.alertmanager}/api/v2/alerts?inhibited=true&active=true")
        return {one["labels"]["alertname"] for one in alerts} - {"Watchdog"}

    def ask(self, expression: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode({"query": expression})
        answer = get(f"{self.monitoring.prometheus}/api/v1/query?{query}")
        return list(answer["data"]["result"])

    def wait(self, holds: Callable[[], object], what: str) -> None:
        deadline = Deadline(PATIENCE_SECONDS)
        while not holds():
            self.monitoring.look()
            assert self.floor.failure is None
            assert not deadline.is_over, (
                f"not after {PATIENCE_SECONDS:g} s: {what}\ntold:\n{self.log}\nfiring: {self.firing()}, "
                f"inhibited: {self.inhibited()}, pending and firing: {self.ask('ALERTS')}"
            )
            time.sleep(0.25)

    def wait_told(self, since: int, status: str, *wanted: tuple[str, str]) -> None:
        self.wait(lambda: set(wanted) <= self.log.since(since, status), f"{status}: {wanted}")


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


@contextmanager
def serving(settings: Settings, port: int) -> Iterator[None]:
    """What `callfunnel view` does."""
    view = View.of(settings)
    shown = Exposition.of(settings, view, new_registry())
    pages = Pages(settings.http_host, port, view=view, exposition=shown, not_ready=view.not_ready)
    view.start()
    pages.start()
    try:
        deadline = Deadline(PATIENCE_SECONDS)
        while view.current is None:
            assert not deadline.is_over, view.not_ready()
            time.sleep(0.1)
        yield
    finally:
        pages.stop()
        view.stop()


@pytest.fixture
def drill(tmp_path: Path) -> Iterator[Drill]:
    try:
        Programs.find()
    except Missing as lacking:
        leave_out(lacking.message.splitlines()[0])
    if embedded_program() is None:
        leave_out("the embedded broker is not installed (noida-db)")
    with EmbeddedBroker() as broker:
        settings = Settings.from_environ(
            {}, broker=broker.address, profile="development", partitions=4, wait_seconds=10.0, view=False
        )
        topics.create(settings)
        floor, log = Floor(settings), Log()
        publish(settings, floor.history())
        with Workers(settings, tmp_path) as crew, floor, Receiver(0, log.take) as receiver:
            ports = [free_port() for _ in range(5)]
            monitoring = Monitoring(
                tmp_path / "monitoring",
                engines=[f"127.0.0.1:{port}" for port in ports[:3]],
                receiver=receiver.address,
                prometheus_port=ports[3],
                alertmanager_port=ports[4],
            )
            monitoring.lay_out()
            shorten(monitoring.folder)
            yield Drill(settings, crew, floor, monitoring, log, ports[:3])


def test_only_where_the_floor_is_differs_from_the_rules_in_use(tmp_path):
    try:
        monitoring = Monitoring(
            tmp_path / "m", engines=[], receiver="127.0.0.1:1", prometheus_port=2, alertmanager_port=3
        )
    except Missing as lacking:
        leave_out(lacking.message.splitlines()[0])
    monitoring.lay_out()
    shorten(monitoring.folder)
    before, after = expressions(HERE), expressions(monitoring.folder)
    assert len(before) > 40
    assert {name for name in before if before[name] != after[name]} == {"callfunnel:utc_offset_seconds"}


ON_THE_FLOOR = {("floor", "NoDialsDuringHours"), ("floor", "LeadResponseSlaBreach")}


@pytest.mark.skipif(
    os.environ.get("FUNNEL_DRILL") != "1", reason="the incident drill, two minutes: make drill"
)
def test_an_incident_is_told_to_whom_it_concerns_and_called_off_when_it_is_over(drill):
    first = drill.worker(drill.ports[0]).wait_until_ready()
    with ExitStack() as views:
        views.enter_context(serving(drill.settings, drill.ports[2]))
        with drill.monitoring:
            # A second worker joins, and both are restarted one after the other: nobody is told anything.
            second = drill.worker(drill.ports[1]).wait_until_ready()
            drill.wait(lambda: len(drill.ask("up == 1")) == 3, "all targets are up")
            first = restarted(drill, first)
            second = restarted(drill, second)
            drill.wait(lambda: len(drill.ask("up == 1")) == 3, "all targets are up again")
            drill.wait(lambda: drill.ask("job:callfunnel_judged:bool"), "the floor is judged")
            assert drill.ask("sum(changes(callfunnel_worker_rebalances_total[10m])) > 0")
            assert drill.ask('max_over_time(ALERTS{alertstate="firing", alertname!="Watchdog"}[10m])') == []
            assert str(drill.log) == "nothing was told"

            # The dialer stops, and new leads come that nobody calls: the floor is told. Five that have waited
            # for longer are no alarm of their own.
            drill.floor.dials = False
            now = time.time()
            waiting = [drill.floor.lead(now - 6 * MINUTE) for _ in range(30)]
            waiting += [drill.floor.lead(now - 17 * MINUTE) for _ in range(5)]
            drill.floor.tell([event for lead in waiting for event in lead])
            drill.wait_told(0, "firing", *ON_THE_FLOOR)
            assert drill.log.since(0, "firing") == ON_THE_FLOOR

            # The workers are killed: the engine's people are told, and the floor's alerts are inhibited.
            killed = len(drill.log)
            first.kill()
            second.kill()
            drill.wait_told(killed, "firing", ("engine", "PartitionsUnassigned"), ("engine", "ProcessDown"))
            on_the_floor = {alert for _, alert in ON_THE_FLOOR}
            drill.wait(lambda: drill.inhibited() == on_the_floor, "the floor's alerts are inhibited")

            # The view goes, too: now nobody serves a number, and nobody says that the floor is well.
            views.close()
            drill.wait_told(killed, "firing", ("engine", "EngineDown"))
            down = {"EngineDown", "ProcessDown"}
            drill.wait(lambda: drill.firing() == down, "only the engine is known to be down")
            time.sleep(2 * GATHERS_SECONDS)  # Alertmanager takes note of what has ended while it is inhibited

            # All is started again: the engine is well, the floor is not, and what was told stands.
            remove_dead_members(drill.settings)
            for port in drill.ports[:2]:
                drill.worker(port)
            views.enter_context(serving(drill.settings, drill.ports[2]))
            drill.wait_told(killed, "resolved", ("engine", "EngineDown"), ("engine", "PartitionsUnassigned"))
            drill.wait(lambda: on_the_floor <= drill.firing(), "the floor's alerts fire again")
            assert {one.receiver for one in drill.log.told[killed:]} == {"engine"}, str(drill.log)

            # The dialer is back, those who wait are called, many others are in time: all is called off.
            drill.floor.dials = True
            now = time.time()
            calls = [drill.floor.call(now, lead[0]["lead_id"]) for lead in waiting]
            calls += [drill.floor.lead(now - 6 * MINUTE, called_after=30) for _ in range(150)]
            drill.floor.tell([event for call in calls for event in call])
            drill.wait_told(killed, "resolved", *ON_THE_FLOOR)
            drill.wait(lambda: not drill.firing() and not drill.active(), "no alert is left")
            assert drill.log.since(0, "firing") == drill.log.since(0, "resolved")
            assert drill.log.watched > 1


def restarted(drill: Drill, worker: Worker) -> Worker:
    worker.process.terminate()
    assert worker.exit_code(30) == 0
    return drill.worker(worker.settings.http_port).wait_until_ready()

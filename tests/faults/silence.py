"""What a worker and a view tell while nobody answers them, or nobody works.

The promise: numbers that stand still never pass as live, what is not known is never 0, and all is right again
soon after.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from typing import Any
from zlib import crc32

import msgspec
import orjson
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    ResourcePatternType,
    ResourceType,
)

from callfunnel.agents.demo import generator
from callfunnel.schemas.events import Event
from faults import stream
from faults.lab import Lab, Size
from faults.run import PARTITIONS, Run, Slot
from faults.stream import Sent
from faults.verify import Verdict
from faults.watch import business, fetch

RIGHT_AGAIN_SECONDS = 15.0
"""Within so long after the broker answers again, every number is right."""

_SAMPLE = re.compile(r"^(callfunnel_\w+(?:\{.*\})?) (\S+)$", re.MULTILINE)


def frozen(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """The only broker is stopped by SIGSTOP: its connections stay open, and it answers nobody."""
    (node,) = lab.cluster().nodes
    patience = 15.0 if size.seconds >= 30 else 3.0
    with lab.run(name, seed=seed, events=size.events, workers=1, stale_seconds=patience) as run:
        third = size.events // 3
        run.begin_oracle(third)
        with viewing(run) as view:
            run.start_workers()
            run.publisher.start(third)
            run.publisher.finish()
            (slot,) = run.slots
            seen = run.expected().counters[0]
            run.wait_for_pages(seen)
            run.until(lambda: business(view.page) == seen, 30, "the view's page is right")
            run.sleep(patience + 1)  # nothing is published: the brokers answer all the same
            for one in (slot, view):
                run.expect(one.worker.is_ready, f"{one.command}: it is not ready on a quiet topic")
                run.expect(state(one)[0] == 200, f"{one.command}: the API has no numbers")
            run.expect(lags(slot).keys() == set(range(PARTITIONS)), f"on a quiet topic: {lags(slot)}")
            node.pause()
            began = time.monotonic()
            try:
                for one in (slot, view):
                    run.until(lambda one=one: not one.worker.is_ready, 60, f"{one.command}: it is not ready")
                run.figures["noticed_seconds"] = round(time.monotonic() - began, 1)
                run.expect(
                    time.monotonic() - began <= patience + 3,
                    f"it took longer than {patience:g} s to be not ready",
                )
                run.sleep(2)  # the worker's gauges follow within a second
                _says_so(run, slot, view)
                run.sleep(max(0.0, began + size.seconds - time.monotonic()))
                _says_so(run, slot, view)
            finally:
                node.resume()
            began = time.monotonic()
            run.until(
                lambda: all(one.worker.is_ready and business(one.page) == seen for one in (slot, view)),
                60,
                "the pages are right again",
            )
            took = time.monotonic() - began
            run.expect(took <= RIGHT_AGAIN_SECONDS, f"the pages were right after {took:.1f} s only")
            run.figures |= {"frozen_seconds": size.seconds, "right_again_seconds": round(took, 1)}
            verdict = run.finish()
        return verdict, run.figures


def _says_so(run: Run, slot: Slot, view: Slot) -> None:
    for one in (slot, view):
        status, told = fetch(one.port, "/-/ready")
        run.expect(
            (status, "has answered for" in told) == (503, True), f"{one.command}: /-/ready says {told!r}"
        )
        series = samples(one)
        names = {name.partition("{")[0] for name in series}
        left = names & {"callfunnel_events_total", "callfunnel_window_events", "callfunnel_leads_uncalled"}
        run.expect(series, f"{one.command}: its own series are gone, too")
        run.expect(not left, f"{one.command}: {left} are shown as if they were of now")
        run.expect("callfunnel_worker_consumer_lag" not in names, f"{one.command}: it claims to know its lag")
        run.expect(
            "callfunnel_view_lag_records" not in names, f"{one.command}: the view claims to know its lag"
        )
        stale = series.get('callfunnel_view_state{state="stale"}')
        run.expect(stale == 1, f"{one.command}: its view is not stale but {stale}")
        answered = series.get("callfunnel_view_broker_answer_timestamp_seconds", 0.0)
        run.expect(
            time.time() - answered >= run.settings.stale_seconds, f"{one.command}: answered {answered}"
        )
        code, body = state(one)
        run.expect((code, body.get("state")) == (503, "stale"), f"{one.command}: the API says {code} {body}")
        run.expect("stages" not in body, f"{one.command}: the API gives numbers")
    run.expect(samples(slot).get("callfunnel_worker_ready") == 0, "the worker's metric says that it is ready")


def mute(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """One of three brokers is stopped by SIGSTOP: what it leads is unknown until others lead it."""
    cluster = lab.cluster(3)
    with lab.run(name, brokers=3, seed=seed, events=size.events, workers=1, stale_seconds=4.0) as run:
        run.begin_oracle()
        run.start_workers()
        run.publisher.start(size.events // 3)
        run.publisher.finish()
        (slot,) = run.slots
        run.until(lambda: lags(slot) == dict.fromkeys(range(PARTITIONS), 0), 60, "everything is counted")
        described = run.admin.describe_consumer_groups([run.settings.app_id])
        coordinator = described[run.settings.app_id].result(20).coordinator.id
        topic = run.admin.list_topics(run.settings.source_topic, timeout=20).topics[run.settings.source_topic]
        leads = {number: its.leader for number, its in topic.partitions.items()}
        chosen = next(leader for leader in leads.values() if leader != coordinator)
        its_own = {number for number, leader in leads.items() if leader == chosen}
        node = next(node for node in cluster.nodes if node.number == chosen)
        node.pause()
        began = time.monotonic()
        try:
            first = f"{run.settings.source_topic}/{min(its_own)}"
            run.until(lambda: first in fetch(slot.port, "/-/ready")[1], 10, f"/-/ready names {first}")
            run.figures["noticed_seconds"] = round(time.monotonic() - began, 1)
            run.expect(samples(slot).get("callfunnel_worker_ready") == 0, "the metric says that it is ready")
            run.sleep(1.5)  # the gauges follow within a second
            run.expect(lags(slot).keys() == set(range(PARTITIONS)) - its_own, f"of {its_own}: {lags(slot)}")
            run.until(lambda: slot.worker.is_ready, 60, "another broker leads its partitions")
            run.figures["led_by_others_seconds"] = round(time.monotonic() - began, 1)
        finally:
            node.resume()
        cluster.wait()
        return run.finish(), run.figures


def orphaned(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Every worker is killed, the view lives, and a floor goes on: nothing of it is counted."""
    now_ms = int(time.time() * 1000)
    floor = generator.live(seed, generator.FloorSettings().at_rate(size.events / 3_600), now_ms)
    told = [event for _, event in takewhile(lambda one: one[0] <= now_ms, floor)]
    told.sort(key=lambda event: crc32(event["lead_id"].encode()) % 2)  # both halves go on until now
    sent = [Sent(orjson.dumps(one), one["lead_id"].encode(), now_ms, None, one) for one in told]
    half = sum(crc32(one["lead_id"].encode()) % 2 == 0 for one in told)
    options = {"clock": "wall", "stale_seconds": 3.0, "workers": 2, "sent": iter(sent)}
    with lab.run(name, seed=seed, events=len(sent), **options) as run, viewing(run) as view:
        run.start_workers()
        run.publisher.start(half)
        run.publisher.finish()
        run.until(lambda: business(view.page) == counted(sent[:half]), 30, "the view's page is right")
        run.until(lambda: state(view)[1].get("state") == "live", 30, "the view is live")
        for slot in run.slots:
            slot.kill()
        before = windows(view)
        rest = len(sent) - half
        run.publisher.start(rest)
        run.publisher.finish()
        began = time.monotonic()
        run.until(lambda: waiting(view) == rest, 10, f"the view knows of {rest} records")
        run.figures["known_seconds"] = round(time.monotonic() - began, 1)
        run.until(lambda: state(view)[1].get("state") == "behind", 20, "the view says that it is behind")
        run.figures["behind_seconds"] = round(time.monotonic() - began, 1)
        ends = time.monotonic() + size.seconds
        while time.monotonic() < ends:
            code, body = state(view)
            run.expect(
                (code, body.get("state"), f"{rest:,} records" in body.get("reason", ""))
                == (200, "behind", True),
                f"the API says {code}, {body.get('state')}, {body.get('reason')}",
            )
            run.expect(windows(view) == before, "a window changed while nothing was counted")
            run.sleep(1)
        run.slots[0].start().wait_until_ready()
        began = time.monotonic()
        run.until(
            lambda: state(view)[1].get("state") == "live" and not waiting(view), 40, "the view is live again"
        )
        run.figures |= {"waited": rest, "live_again_seconds": round(time.monotonic() - began, 1)}
        run.expect(business(view.page) == counted(sent), "the view's page is wrong in the end")
        _not_allowed(run, view)
        verdict = Verdict(differences=run.differences)
        for watch in run.watches:
            verdict.differences += watch.complaints[:20]
        return verdict, run.figures


def _not_allowed(run: Run, view: Slot) -> None:
    """Whoever may not ask where the source ends does not know whether the numbers are all."""
    rule = ResourceType.TOPIC, run.settings.source_topic, ResourcePatternType.LITERAL, "User:*", "*"
    denied = AclBinding(*rule, AclOperation.DESCRIBE, AclPermissionType.DENY)
    run.admin.create_acls([denied])[denied].result(20)
    for slot in run.running():
        slot.kill()
    run.until(lambda: state(view)[1].get("state") == "unchecked", 20, "the view says that it may not ask")
    told = state(view)[1].get("reason", "")
    run.expect("grant it Describe" in told, f"it says {told!r}")
    run.expect(waiting(view) == -1, "the view claims to know how many records wait")
    run.expect(view.worker.is_ready, "the view shows nothing any more")


@contextmanager
def viewing(run: Run) -> Iterator[Slot]:
    """A view in a process of its own."""
    view = Slot(run, 0, "view")
    view.start()
    try:
        yield view
    finally:
        view.kill()


def counted(sent: list[Sent]) -> stream.Counters:
    return stream.counters([msgspec.convert(one.event, Event) for one in sent])


def samples(slot: Slot) -> dict[str, float]:
    """Every sample of the product on a page, whatever the status of the answer."""
    return {name: float(value) for name, value in _SAMPLE.findall(fetch(slot.port)[1])}


def windows(view: Slot) -> dict[str, float]:
    return {name: n for name, n in samples(view).items() if name.startswith("callfunnel_window_events{")}


def waiting(view: Slot) -> float:
    """How many records wait to be counted, says the view; nothing told is -1."""
    told = [n for name, n in samples(view).items() if name.startswith("callfunnel_view_source_lag_records")]
    return sum(told) if told else -1


def lags(slot: Slot) -> dict[int, float]:
    """The lag of each partition, as the worker tells it."""
    return {
        int(name.partition('partition="')[2].partition('"')[0]): n
        for name, n in samples(slot).items()
        if name.startswith("callfunnel_worker_consumer_lag{")
    }


def state(slot: Slot) -> tuple[int, dict[str, Any]]:
    status, body = fetch(slot.port, "/api/v1/funnel?window=5m")
    return status, orjson.loads(body) if body else {}

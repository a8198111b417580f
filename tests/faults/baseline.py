"""The same kills for the naive program: what plain Faust tables lose and double, beside our nothing."""

import os
import sys
import time
from collections import Counter
from typing import Any

import orjson
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from callfunnel.agents.demo.broker import start_process
from faults import stream
from faults.lab import Lab, Size
from faults.processes import kill_at_random
from faults.run import PARTITIONS, Run, Slot
from faults.verify import Verdict
from integration.workers import ROOT, Worker
from patience import Deadline

WORKERS = 3
MIX = stream.Mix(poison=0.0)
"""A record that Faust itself cannot decode would stop it for five seconds each time."""

COUNTED = ("lead_created", "dial", "connect", "dm_reached", "qualified", "won")
"""The types of events that the naive program counts."""

Counts = Counter[tuple[str, int]]


class NaiveSlot(Slot):
    """A place for a process of the naive program."""

    def start(self, environ: Any = None, **changes: Any) -> Worker:
        run = self._run
        self.starts += 1
        own = {
            "NAIVE_APP": f"{run.settings.app_id}-naive",
            "NAIVE_BROKER": run.settings.broker,
            "NAIVE_SOURCE": run.settings.source_topic,
            "NAIVE_PARTITIONS": str(PARTITIONS),
            "NAIVE_FOLDER": str(run.folder / f"{self.name}-data"),
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        }
        command = [
            sys.executable,
            "-m",
            "faust",
            "-A",
            "faults.naive",
            "worker",
            "--without-web",
            "-l",
            "warn",
        ]
        self.worker = worker = object.__new__(Worker)
        worker.settings = run.settings
        worker._log = run.folder / f"{self.name}-{self.starts}.log"
        worker.process = start_process(command, worker._log, {**os.environ, **own})
        self.wanted = True
        return worker


def naive(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Its figures are for the table in the README: what it loses is no failure of ours."""
    with lab.run(name, seed=seed, events=size.events, workers=0, mix=MIX) as run:
        run.slots = [NaiveSlot(run, number) for number in range(1, WORKERS + 1)]
        for slot in run.slots:
            slot.start()
        run.sleep(8)
        run.publisher.start(size.events, size.seconds)
        kill_at_random(run, size)
        run.publisher.finish()
        got, done = _read(run, patience_seconds=180)
        want = _expected(seed, size.events)
        lost = sum(max(0, n - got[cell]) for cell, n in want.items())
        doubled = sum(max(0, n - want[cell]) for cell, n in got.items())
        per_million = 1_000_000 / sum(want.values())
        return Verdict(), {
            "naive_lost": lost,
            "naive_doubled": doubled,
            "naive_lost_per_million": round(lost * per_million),
            "naive_doubled_per_million": round(doubled * per_million),
            "naive_counts": sum(want.values()),
            "naive_came_to_the_end": done,
            "kills": size.times,
        }


def _expected(seed: int, n: int) -> Counts:
    events = ((sent.event, sent.at_ms) for sent in stream.records(seed, n, MIX))
    return Counter(
        (f"{event['type']},{event['campaign']},{event['source']}", at_ms // 60_000)
        for event, at_ms in events
        if event["type"] in COUNTED
    )


def _read(run: Run, patience_seconds: float) -> tuple[Counts, bool]:
    """The table by its changelog, once the group has committed everything and nothing more is written."""
    app = f"{run.settings.app_id}-naive"
    consumer = Consumer(
        {
            "bootstrap.servers": run.settings.broker,
            "group.id": app,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    changelog = f"{app}-counts-changelog"
    consumer.assign([TopicPartition(changelog, number, OFFSET_BEGINNING) for number in range(PARTITIONS)])
    source = [TopicPartition(run.settings.source_topic, number) for number in range(PARTITIONS)]
    rows: dict[tuple[int, bytes], bytes] = {}
    ends, quiet_since, deadline = run.publisher.ends(), time.monotonic(), Deadline(patience_seconds)
    done = False
    while not deadline.is_over and not done:
        run.tend()
        for message in consumer.consume(10_000, 0.5):
            if message.error():
                assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
                continue
            rows[message.partition(), message.key()] = message.value()
            quiet_since = time.monotonic()
        if time.monotonic() - quiet_since > 5:
            committed = {each.partition: each.offset for each in consumer.committed(source, 20)}
            done = all(committed[partition] >= end for partition, end in ends.items())
    consumer.close()
    counts = Counts()
    for (_, key), value in rows.items():
        name, (start, _) = orjson.loads(key)
        counts[name, int(start) // 60] += orjson.loads(value)
    return counts, done

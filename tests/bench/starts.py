"""Installations on the broker of a benchmark, and what a process of one takes until it shows numbers."""

import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Producer

from bench import machine
from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import free_port
from callfunnel.streams.funnel import Change
from integration.workers import Worker, variables, with_only

SECONDS_AT_MOST = 300.0
CURRENT = 'callfunnel_view_state{state="current"} 1.0'


class Start(msgspec.Struct):
    cpu_seconds: float
    seconds: float
    memory_mib: float
    page: str
    """A second later: the worker counts its tables a few times a second."""


def settings_of(broker: str, name: str, **changes: Any) -> Settings:
    """Settings of an installation of its own, on one broker."""
    own = {"app_id": name, "source_topic": name, "dead_letter_topic": f"{name}.dlq"}
    return Settings.from_environ({}, broker=broker, profile="development", **own | changes)


def write(settings: Settings, topic: str, changes: Iterable[tuple[int, Change]], batch: int = 10_000) -> None:
    """Append to the partitions of a changelog, in record batches of so many records at most."""
    producer = Producer(
        {
            "bootstrap.servers": settings.broker,
            "compression.type": settings.changelog_compression,
            "enable.idempotence": True,
            "linger.ms": 50,
            "batch.num.messages": batch,
        }
    )
    for n, (partition, (key, value)) in enumerate(changes, start=1):
        producer.produce(topic, value, key, partition=partition)
        if n % 50_000 == 0:
            producer.flush()
    producer.flush()


def start(settings: Settings, command: str = "worker") -> Start:
    """Start a worker or a view, wait for its numbers and end it."""
    with tempfile.TemporaryDirectory(prefix="start-") as folder:
        settings = msgspec.structs.replace(settings, http_port=free_port())
        began = time.monotonic()
        its = Worker(settings, Path(folder) / "log", with_only(variables(settings)), command=command)
        shows_numbers = lambda: its.is_ready and CURRENT in its.get("/metrics")[1]  # noqa: E731
        try:
            its.wait_until(shows_numbers, SECONDS_AT_MOST, "has no numbers", every_seconds=0.1)
            seconds, pid = time.monotonic() - began, its.process.pid
            cpu_seconds, memory_mib = machine.cpu_seconds(pid), machine.memory_mib(pid, "VmRSS")
            time.sleep(1.0)
            return Start(cpu_seconds, seconds, memory_mib, its.get("/metrics")[1])
        finally:
            its.kill()

"""The Kafka clusters of a session, each started when a plan first asks for it."""

import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from msgspec import Struct

from callfunnel.agents.kafka import topics
from callfunnel.agents.scratch import Scratch
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from deploy.kafka import kraft
from faults.run import Run
from faults.stream import Mix
from patience import Deadline

CLEANS_QUICKLY = {"log.cleaner.backoff.ms": "500", "log.segment.delete.delay.ms": "1000"}
"""Compaction is tried at once where a topic's settings allow it."""

AUTHORIZES = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
"""Everybody may do everything until an ACL says otherwise."""

QUICK_RETENTION = {"log.retention.check.interval.ms": "1000"}


class Size(Struct, frozen=True):
    """How much of it: records, faults, and the seconds over which the records are published."""

    events: int
    times: int
    seconds: float


class Lab:
    def __init__(self, keep: Path | None = None, mix: Mix | None = None) -> None:
        self.mix = mix or Mix()
        self._stack = ExitStack()
        self._clusters: dict[int, kraft.Cluster] = {}
        self._keep = keep

    def __enter__(self) -> Self:
        self.folder = self._keep or self._stack.enter_context(Scratch("faults")).path
        self.folder.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def cluster(self, brokers: int = 1) -> kraft.Cluster:
        if brokers not in self._clusters:
            properties = CLEANS_QUICKLY | QUICK_RETENTION | (AUTHORIZES if brokers == 1 else {})
            cluster = kraft.Cluster(brokers=brokers, properties=properties)
            self._clusters[brokers] = self._stack.enter_context(cluster)
        return self._clusters[brokers]

    def run(
        self, name: str, *, brokers: int = 1, cluster: kraft.Cluster | None = None, **options: Any
    ) -> Run:
        """A run with topics of its own, on `cluster` or on that of so many brokers."""
        folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
        options = {"mix": self.mix} | options
        return Run(name, cluster or self.cluster(brokers), folder, replicas=brokers, **options)


def configure(admin: AdminClient, of: str | int, **values: str) -> None:
    """Set settings of a topic, by its name, or of a broker, by its number, with `_` for each dot in them."""
    entries = [
        ConfigEntry(key.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
        for key, value in values.items()
    ]
    kind = ResourceType.TOPIC if isinstance(of, str) else ResourceType.BROKER
    resource = ConfigResource(kind, str(of), incremental_configs=entries)
    admin.incremental_alter_configs([resource])[resource].result(20)


def compact(cluster: kraft.Cluster, run: Run) -> int:
    """Have both changelogs compacted, under load; over how many offsets the cleaner went."""
    changelogs = funnel_changelog(run.settings.app_id), leads_changelog(run.settings.app_id)
    specs = {spec.name: spec.config for spec in topics.wanted(run.settings)}
    before = _cleaned(cluster, changelogs)
    for topic in changelogs:
        configure(
            run.admin, topic, segment_ms="200", min_compaction_lag_ms="0", min_cleanable_dirty_ratio="0.001"
        )
    deadline = Deadline(60)
    while not all(then < now for then, now in zip(before, _cleaned(cluster, changelogs), strict=True)):
        if deadline.is_over:
            run.expect(False, "the changelogs were not compacted within 60 s")
            break
        time.sleep(0.1)
    for topic in changelogs:
        own = ("segment.ms", "min.compaction.lag.ms", "min.cleanable.dirty.ratio")
        configure(run.admin, topic, **{key.replace(".", "_"): specs[topic][key] for key in own})
    return sum(_cleaned(cluster, changelogs)) - sum(before)


def _cleaned(cluster: kraft.Cluster, names: Sequence[str]) -> list[int]:
    """Of each topic, the sum of the offsets up to which the log cleaner has compacted its partitions."""
    found = dict.fromkeys(names, 0)
    checkpoint = cluster.nodes[0].log.parent / "data" / "cleaner-offset-checkpoint"
    for line in checkpoint.read_text().splitlines() if checkpoint.exists() else ():
        topic, *numbers = line.split(" ")
        if topic in found:
            found[topic] += int(numbers[1])
    return list(found.values())

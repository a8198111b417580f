"""Is everything as a worker needs it: each check is one line, and what fails names its remedy.

The law: a check changes nothing that a reader of the topics could see.
"""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import TYPE_CHECKING

from msgspec import Struct

from callfunnel.agents.choice import BY_DEFINITION, not_built
from callfunnel.agents.config import Settings, variable
from callfunnel.agents.errors import Failure, SettingError
from callfunnel.agents.kafka import descriptors, diagnosis, rights, topics
from callfunnel.agents.kafka.connection import admin_client, aiokafka_options, kafka_python_options
from callfunnel.agents.kafka.described import brokers_of
from callfunnel.agents.remedies import REMEDIES
from callfunnel.agents.versions import pip_install, unsuitable
from callfunnel.schemas.topics import funnel_changelog
from callfunnel.streams.partitioning import home

if TYPE_CHECKING:
    from kafka.errors import KafkaError

    from callfunnel.streams.rows import Position

LIBRARIES = ("faust-streaming", "aiokafka", "kafka-python", "prometheus-client", "msgspec", "orjson")
NEEDED = (
    "InitProducerId",
    "AddPartitionsToTxn",
    "EndTxn",
    "Fetch",
    "ListOffsets",
    "OffsetCommit",
    "JoinGroup",
)
"""Requests a broker must know: an idempotent, transactional producer and a consumer group."""

SAMPLE = 200
"""Latest records looked at per partition."""


class Finding(Struct, frozen=True):
    """The result of one check: what was seen, and how to cure it when it is not `ok` or could be better."""

    ok: bool
    what: str
    told: str
    remedy: str = ""


def run(settings: Settings) -> Iterator[Finding]:
    """Check one thing after the other. Raises BrokerUnavailable when no broker answers."""
    from kafka.protocol.broker_version_data import BrokerVersionData

    yield _versions()
    yield _core(settings)
    asked = diagnosis.ask(settings.brokers, aiokafka_options(settings))
    for address, problem in asked.items():
        if problem and not all(asked.values()):
            yield Finding(
                False, "broker", f"{address}: {problem}", f"mend it, or take it out of {variable('broker')}"
            )
    with admin_client(settings) as admin:
        known = admin.api_versions()
        speaks = ".".join(map(str, BrokerVersionData(api_versions=known).broker_version))
        answering = ", ".join(address for address, problem in asked.items() if not problem)
        told = f"{answering} answers ({settings.security_protocol}) as Kafka {speaks}"
        yield Finding(True, "broker", told)
        yield _transactions({api.name for api in known})
        yield _descriptors(settings, brokers_of(admin) or len(settings.brokers))
        if lacking := list(rights.lacking(admin, settings)):
            first, *commands = rights.told(lacking, settings).splitlines()
            yield Finding(False, "rights", first, "\n     ".join(["", *commands]))
            return
        specs = {spec.name: spec for spec in topics.wanted(settings)}
        found = topics.describe(admin, specs)
    wrong = topics.compare(settings)
    yield from (Finding(False, "topics", _without_remedy(each), each.remedy) for each in wrong)
    if not wrong:
        calls = found[settings.source_topic]
        size = f"partitions: {calls.partitions}, copies: {calls.replication_factor}"
        yield Finding(True, "topics", f"all {len(found)} are there ({size})")
        stamped = calls.config["message.timestamp.type"]
        yield Finding(True, "timestamps", f"{settings.source_topic} is stamped with {stamped}")
    source, changelog = found.get(settings.source_topic), found.get(funnel_changelog(settings.app_id))
    if (
        source and changelog and source.partitions == changelog.partitions
    ):  # else that is wrong, as told above
        yield from asyncio.run(_tables(settings, source.partitions))
    if settings.dead_letter_topic in found:
        yield _dead_letters(settings)
    if settings.source_topic in found and settings.partitioner != "trust":
        yield _routing(settings)


def _versions() -> Finding:
    installed = {name: metadata.version(name) for name in LIBRARIES}
    told = ", ".join([f"python {platform.python_version()}", *(f"{n} {v}" for n, v in installed.items())])
    if wrong := unsuitable():
        told += f"; this release is tested with {', '.join(wrong)}"
        return Finding(False, "versions", told, f"run `{pip_install(*wrong)}`")
    return Finding(True, "versions", told)


def _core(settings: Settings) -> Finding:
    if settings.tables == "definition":
        return Finding(True, "fold", "by the definition, as CALLFUNNEL_TABLES says")
    if lacking := not_built():
        if settings.tables == "core":
            return Finding(
                False, "fold", "CALLFUNNEL_TABLES asks for the core: a worker ends with 64", lacking
            )
        return Finding(True, "fold", BY_DEFINITION, lacking)
    return Finding(True, "fold", "by the core")


def _transactions(known: set[str]) -> Finding:
    lacking = [name for name in NEEDED if name not in known]
    if lacking:
        told = f"the broker does not know {', '.join(lacking)}"
        return Finding(False, "transactions", told, "use Apache Kafka 2.5 or newer")
    return Finding(True, "transactions", "the broker has idempotent and transactional producers")


def _descriptors(settings: Settings, brokers: int) -> Finding:
    needed = descriptors.needed(settings, brokers)
    try:
        allowed = descriptors.require(needed)
    except SettingError as error:
        told, remedy = error.message.split(" Nothing is lost. ")
        return Finding(False, "descriptors", told, remedy)
    return Finding(True, "descriptors", f"a worker may need {needed}, and may have {allowed}")


def _without_remedy(difference: topics.Difference) -> str:
    return str(difference).removesuffix(f"; {difference.remedy}")


async def _tables(settings: Settings, partitions: int) -> list[Finding]:
    """Whether the tables were made from the topic that is the source now, and with these settings."""
    from aiokafka.errors import KafkaError

    from callfunnel.agents.engine.source import OtherTopic, Source, resume_at, witnessed
    from callfunnel.agents.kafka.changelog import funnel_positions
    from callfunnel.agents.kafka.read_committed import repair

    repair()
    client = aiokafka_options(settings)
    source = Source(client, settings.source_topic, settings.transaction_timeout_seconds)
    wrong: list[OtherTopic] = []
    try:
        held = await funnel_positions(client, settings.app_id, range(partitions))
        found = await source.found(range(partitions))
        records = await witnessed(source, held, found)
    except (Failure, KafkaError, TimeoutError) as error:
        told = f"whether they are made from {settings.source_topic} cannot be seen: {error!r}"
        return [Finding(False, "tables", told, "see the brokers and the permission to read both topics")]
    finally:
        await source.close()
    for number, position in held.items():
        try:
            resume_at(number, position, found[number], records.get(number))
        except OtherTopic as error:
            wrong.append(error)
    if wrong:
        more = f" ({len(wrong)} of {len(held)} partitions)" if len(wrong) > 1 else ""
        return [Finding(False, "tables", wrong[0].told + more, wrong[0].remedy)]
    if not held:
        return [Finding(True, "tables", f"there are none yet of app id {settings.app_id}")]
    topic_id = found[0].topic_id or "none: the last records tell"
    told = f"those of app id {settings.app_id} are made from {settings.source_topic} (topic id {topic_id})"
    return [Finding(True, "tables", told), _settings_of_tables(settings, held)]


def _settings_of_tables(settings: Settings, held: Mapping[int, Position]) -> Finding:
    """What a worker with these settings would do with the tables."""
    from callfunnel.agents.engine.worker import fold_of

    fold = fold_of(settings)
    other = [number for number, position in sorted(held.items()) if position.fold != fold.id]
    replaced = [number for number in other if fold.id in held[number].replaced]
    if not other:
        return Finding(True, "settings", "the tables are made with these settings of the fold")
    of_them = f"{', '.join(map(str, replaced or other))} of {len(held)}"
    if replaced:
        told = f"partitions {of_them}: a worker with these settings ends with 78, others have replaced them"
        return Finding(False, "settings", told, str(REMEDIES["fold-adopt"]))
    is_half = len(other) < len(held)
    told = f"partitions {of_them} are made with other settings: a worker with these derives their rows anew"
    remedy = (
        "start one: a derivation was broken off"
        if is_half
        else "give all workers the settings that are meant"
    )
    return Finding(True, "settings", told, remedy)


def _dead_letters(settings: Settings) -> Finding:
    """Write a record in a transaction and take it back: who reads what is committed never sees it."""
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    topic = settings.dead_letter_topic
    try:
        producer = KafkaProducer(
            **kafka_python_options(settings),
            transactional_id=f"{settings.app_id}-check",
            max_block_ms=10_000,
            request_timeout_ms=5_000,
            delivery_timeout_ms=10_000,
        )
        try:
            producer.init_transactions()
            producer.begin_transaction()
            producer.send(topic, b"callfunnel check", partition=0).get(10)
            producer.abort_transaction()
        finally:
            producer.close(timeout=1)
    except KafkaError as error:
        told = f"{topic} cannot be written in a transaction: {type(error).__name__}"
        return Finding(False, "dead letters", told, _write_remedy(error))
    return Finding(True, "dead letters", f"{topic} takes records in a transaction")


def _write_remedy(error: KafkaError) -> str:
    from kafka.errors import (
        AuthorizationError,
        NotEnoughReplicasAfterAppendError,
        NotEnoughReplicasError,
        RetriableError,
    )

    if isinstance(error, AuthorizationError):
        return "grant what `callfunnel topics rights` prints"
    if isinstance(error, NotEnoughReplicasError | NotEnoughReplicasAfterAppendError):
        return "fewer copies are in sync than min.insync.replicas asks for: start the brokers that are down"
    if isinstance(error, RetriableError):
        return (
            "it took longer than 10 s. A new Kafka makes its topic for transactions at the first one: check "
            "again. If it stays so, look at the brokers' logs for __transaction_state"
        )
    return "look at the brokers' logs"


def _routing(settings: Settings) -> Finding:
    topic = settings.source_topic
    if settings.partitioner == "trust":
        return Finding(
            True, "routing", "events are counted wherever they were published (partitioner = trust)"
        )
    partitions, keys = _latest_keys(settings, topic)
    keyed = {(key, partition) for key, partition in keys if key is not None}
    without_key = sum(key is None for key, _ in keys)
    if without_key:
        told = f"{without_key} of the latest {len(keys)} records of {topic} have no key"
        return Finding(False, "routing", told, "publish each event with its lead_id as the record's key")
    if not keys:
        return Finding(True, "routing", f"{topic} is empty: nothing to look at")
    away = sorted(pair for pair in keyed if home(pair[0], partitions, settings.partitioner) != pair[1])
    if not away:
        told = f"the latest {len(keyed)} leads of {topic} lie where {settings.partitioner} puts them"
        return Finding(True, "routing", told)
    key, partition = away[0]
    other = "crc32" if settings.partitioner == "murmur2" else "murmur2"
    by_other = all(home(key, partitions, other) == partition for key, partition in away)
    told = (
        f"{len(away)} of the latest {len(keyed)} leads of {topic} ({len(away) / len(keyed):.0%}) are not "
        f"where {settings.partitioner} puts them{f', all of them where {other} does' if by_other else ''}; "
        f"{key[:64].decode(errors='replace')!r} is in partition {partition}, "
        f"not in {home(key, partitions, settings.partitioner)}"
    )
    return Finding(not by_other, "routing", told, _routing_remedy(settings.partitioner, by_other))


def _routing_remedy(partitioner: str, by_other: bool) -> str:
    """They are counted all the same, at the price of a second write each."""
    if not by_other:
        return (
            "none, if the topic has grown by partitions since, or partitions are chosen by hand: events are "
            "moved home, at the price of a second write each. Else see what publishers hash keys with"
        )
    if partitioner == "crc32":
        return "set every publisher to CRC32 (librdkafka: partitioner=consistent_random)"
    return (
        "set partitioner=murmur2_random in publishers that use librdkafka (confluent-kafka, rdkafka, "
        "php-rdkafka); until then their events are moved, at the price of a second write each"
    )


def _latest_keys(settings: Settings, topic: str) -> tuple[int, list[tuple[bytes | None, int]]]:
    """How many partitions the topic has; key and partition of its latest records."""
    return asyncio.run(_read_latest_keys(settings, topic))


async def _read_latest_keys(settings: Settings, topic: str) -> tuple[int, list[tuple[bytes | None, int]]]:
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from callfunnel.agents.kafka.microbatch import fetch

    consumer = AIOKafkaConsumer(**aiokafka_options(settings), enable_auto_commit=False)
    await consumer.start()
    try:
        first = TopicPartition(topic, 0)
        consumer.assign([first])
        await consumer.end_offsets([first])  # its metadata names the other partitions
        assigned = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
        consumer.assign(assigned)
        begins, ends = await consumer.beginning_offsets(assigned), await consumer.end_offsets(assigned)
        for partition in assigned:
            consumer.seek(partition, max(begins[partition], ends[partition] - SAMPLE))
        keys: list[tuple[bytes | None, int]] = []
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline and any([await consumer.position(p) < ends[p] for p in assigned]):
            for partition, batch in (await fetch(consumer, SAMPLE, 0.5)).items():
                keys += [(key, partition.partition) for key in batch.keys]
        return len(assigned), keys
    finally:
        await consumer.stop()

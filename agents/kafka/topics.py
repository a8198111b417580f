"""The topics on the broker against what they have to be: create, compare, mend; and waiting for the broker.

The law: what is there is never made less. A missing topic is created and a setting set right, but no
retention is shortened, and partitions and copies of an existing topic are a person's decision.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import asdict

from callfunnel.agents.config import Settings, variable
from callfunnel.agents.errors import BrokerUnavailable, Failure, TopicsWrong
from callfunnel.agents.kafka import descriptors, rights
from callfunnel.agents.kafka.connection import admin_client
from callfunnel.agents.kafka.described import brokers_of, described
from callfunnel.agents.remedies import REMEDIES
from callfunnel.schemas.topics import TopicSpec, topics

if TYPE_CHECKING:
    from kafka import KafkaAdminClient

RETRY_SECONDS = 5.0


class Difference(Struct, frozen=True):
    """One way in which a topic is not as it has to be, and what to do about it."""

    topic: str
    what: str
    """`missing`, `partitions`, `replication_factor` or the key of a setting."""
    wanted: str
    found: str
    remedy: str

    def __str__(self) -> str:
        if self.what == "missing":
            return f"{self.topic} is missing; {self.remedy}"
        return f"{self.topic}: {self.what} is {self.found}, not {self.wanted}; {self.remedy}"


class Change(Struct, frozen=True):
    """What was done to a topic: `created`, or the key of a setting that was set right."""

    topic: str
    what: str
    value: str = ""


def wait_for_broker(settings: Settings, on_retry: Callable[[str], object]) -> None:
    """Return when a broker answers; tell `on_retry` every 5 s why not.

    Raises BrokerUnavailable once `settings.wait_seconds` are over; with None it waits for ever.
    """
    began = time.monotonic()
    limit = math.inf if settings.wait_seconds is None else settings.wait_seconds
    while True:
        attempt = time.monotonic()
        try:
            timeout_seconds = min(RETRY_SECONDS, max(began + limit - attempt, 1.0))
            admin_client(settings, timeout_seconds).close()
            return
        except BrokerUnavailable as error:
            waited = time.monotonic() - began
            if waited + 0.1 >= limit:
                raise BrokerUnavailable(f"{error.message} Waited {waited:.0f} s.") from error
        on_retry(
            f"No broker answers at {settings.broker} for {waited:.0f} s; trying again. "
            f"Start it, or name another one with --broker or {variable('broker')}."
        )
        time.sleep(max(0.0, attempt + RETRY_SECONDS - time.monotonic()))


def wanted(settings: Settings, source_partitions: int | None = None) -> tuple[TopicSpec, ...]:
    """The topics that `settings` ask for; an existing source's number of partitions is everyone's."""
    return topics(
        app_id=settings.app_id,
        source=settings.source_topic,
        dead_letters=settings.dead_letter_topic,
        partitions=source_partitions or settings.partitions,
        replication_factor=settings.replication_factor,
        min_insync_replicas=settings.min_insync_replicas,
        clock=settings.clock,
    )


def describe(admin: KafkaAdminClient, names: Iterable[str]) -> dict[str, TopicSpec]:
    """The topics of these names that exist, each with all its settings."""
    from kafka.admin import ConfigResource, ConfigResourceType
    from kafka.errors import TopicAuthorizationFailedError, UnknownTopicOrPartitionError, for_code

    existing = {}
    for topic in described(admin, names):
        error = for_code(topic["error_code"])
        if error is UnknownTopicOrPartitionError:
            continue
        if error is TopicAuthorizationFailedError:
            raise TopicsWrong(
                f"This client may not see the topic {topic['name']}: grant it Describe, or Create if the "
                "topic is to be made."
            )
        if topic["error_code"]:
            raise Failure(f"The broker does not tell about {topic['name']}: {error.__name__}.")
        existing[topic["name"]] = topic["partitions"]
    if not existing:
        return {}
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in existing]
    configs = admin.describe_configs(resources, config_filter="all")["topic"]
    return {
        name: TopicSpec(
            name,
            len(partitions),
            min(len(partition["replica_nodes"]) for partition in partitions),
            {key: str(config["value"]) for key, config in configs[name].items()},
        )
        for name, partitions in existing.items()
    }


def existing(settings: Settings) -> tuple[TopicSpec, ...]:
    """The topics of `settings` as they are on the broker, those that exist. Raises BrokerUnavailable."""
    with admin_client(settings) as admin:
        return tuple(_both(admin, settings)[1].values())


def differences(
    specs: Iterable[TopicSpec],
    found: Mapping[str, TopicSpec],
    options: str = "",
    brokers: int | None = None,
) -> tuple[Difference, ...]:
    """Where `found` is not as `specs` ask. Settings that no spec names are the operator's own.

    `options` follow the commands that are named as a remedy; `brokers` is how many could hold a copy.
    """
    create = f"run `callfunnel topics create{options}` (remedy create-topics)"
    return tuple(
        difference
        for spec in specs
        for difference in _differences(
            spec,
            found.get(spec.name),
            create
            if brokers is None or brokers >= spec.replication_factor
            else too_few_brokers(spec, brokers),
            options,
        )
    )


def too_few_brokers(spec: TopicSpec, brokers: int) -> str:
    """The remedy where no topic with so many copies can be made."""
    return (
        f"it is to have {spec.replication_factor} copies, and the cluster has {brokers} "
        f"broker{'s' * (brokers > 1)}: add brokers, or for a single one set CALLFUNNEL_PROFILE=development "
        "(one copy: what that disk loses is lost)"
    )


def compare(settings: Settings) -> tuple[Difference, ...]:
    """Where the broker's topics are not as `settings` ask. Raises BrokerUnavailable."""
    with admin_client(settings) as admin:
        return differences(*_both(admin, settings), _options(settings), brokers_of(admin))


def require(settings: Settings) -> int:
    """The number of partitions that all topics share.

    Raises TopicsWrong, which names each difference, or each right that this client lacks, and SettingError
    where a worker would run out of file descriptors with so many brokers.
    """
    with admin_client(settings) as admin:
        if lacking := list(rights.lacking(admin, settings)):
            raise TopicsWrong(rights.told(lacking, settings))
        specs, found = _both(admin, settings)
        brokers = brokers_of(admin)
    if wrong := differences(specs, found, _options(settings), brokers):
        raise TopicsWrong("\n".join(["The topics are not as they have to be:", *map(str, wrong)]))
    descriptors.require(descriptors.needed(settings, brokers or len(settings.brokers)))
    return specs[0].partitions


def create(settings: Settings) -> tuple[Change, ...]:
    """Create the topics that are missing; what was done. Raises TopicsWrong when the broker refuses one."""
    from kafka.errors import TopicAlreadyExistsError, for_code

    with admin_client(settings) as admin:
        specs, found = _both(admin, settings)
        brokers = brokers_of(admin)
        if wrong := [
            f"{spec.name} cannot be created: {too_few_brokers(spec, brokers)}"
            for spec in specs
            if spec.name not in found and brokers and brokers < spec.replication_factor
        ]:
            raise TopicsWrong("\n".join(wrong))
        missing = {
            spec.name: {
                "num_partitions": spec.partitions,
                "replication_factor": spec.replication_factor,
                "configs": spec.config,
            }
            for spec in specs
            if spec.name not in found
        }
        if not missing:
            return ()
        answers = admin.create_topics(missing, raise_errors=False)["topics"]
        changes = []
        for answer in answers:
            error = for_code(answer["error_code"])
            if not answer["error_code"]:
                changes.append(Change(answer["name"], "created"))
            elif error is not TopicAlreadyExistsError:  # another one creates them at the same time: as good
                raise TopicsWrong(
                    f"The broker does not create {answer['name']}: "
                    + (answer["error_message"] or error.__name__).rstrip(".")
                    + _cure(error.__name__)
                )
        admin.wait_for_topics(list(missing))
    return tuple(changes)


def mend(settings: Settings) -> tuple[Change, ...]:
    """Set the settings of existing topics right; what was done. Partitions and copies stay as they are."""
    from kafka.admin import ConfigResource, ConfigResourceType

    with admin_client(settings) as admin:
        specs, found = _both(admin, settings)
        by_name = {spec.name: spec for spec in specs}
        wrong = [
            difference
            for difference in differences(specs, found)
            if difference.what in by_name[difference.topic].config and difference.remedy != TOO_FEW_COPIES
        ]
        changed: dict[str, dict[str, str]] = {name: {} for name in by_name}
        for difference in wrong:
            changed[difference.topic][difference.what] = difference.wanted
        for name, config in changed.items():
            if config:
                admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, config)])
    return tuple(Change(difference.topic, difference.what, difference.wanted) for difference in wrong)


def _both(admin: KafkaAdminClient, settings: Settings) -> tuple[tuple[TopicSpec, ...], dict[str, TopicSpec]]:
    found = describe(admin, [spec.name for spec in wanted(settings)])
    source = found.get(settings.source_topic)
    return wanted(settings, source.partitions if source else None), found


def _options(settings: Settings) -> str:
    """What a command needs to mean the same broker and profile, where they are not the default."""
    given = {"broker": settings.broker, "profile": settings.profile}
    defaults = asdict(Settings())
    return "".join(f" --{name} {value}" for name, value in given.items() if value != defaults[name])


def _differences(spec: TopicSpec, found: TopicSpec | None, create: str, options: str) -> Iterable[Difference]:
    if found is None:
        yield Difference(spec.name, "missing", "", "", create)
        return
    if found.partitions != spec.partitions:
        yield Difference(
            spec.name,
            "partitions",
            str(spec.partitions),
            str(found.partitions),
            f"like the source: its leads have moved to other partitions, so {REMEDIES['count-anew']}"
            if spec.config["cleanup.policy"] == "compact"
            else "like the source: name a new one with CALLFUNNEL_DEAD_LETTER_TOPIC",
        )
    if found.replication_factor < spec.replication_factor:
        yield Difference(
            spec.name,
            "replication_factor",
            str(spec.replication_factor),
            str(found.replication_factor),
            "add copies with Kafka's `kafka-reassign-partitions.sh`, or accept fewer with "
            "CALLFUNNEL_REPLICATION_FACTOR",
        )
    for key, value in spec.config.items():
        is_value = found.config.get(key, "unknown")
        if not _satisfies(key, value, is_value):
            unreachable = key == "min.insync.replicas" and int(value) > found.replication_factor
            fix = f"run `callfunnel topics fix{options}` (remedy fix-topics)"
            yield Difference(spec.name, key, value, is_value, TOO_FEW_COPIES if unreachable else fix)


TOO_FEW_COPIES = "with fewer copies than that nothing could be written: add copies first"

AT_LEAST = frozenset({"retention.ms", "max.message.bytes", "min.compaction.lag.ms", "min.insync.replicas"})
"""Settings of which more is as good."""


def _satisfies(key: str, wanted_value: str, found_value: str) -> bool:
    if key in AT_LEAST and found_value.lstrip("-").isdigit():
        at_least, is_value = (
            math.inf if value == "-1" else int(value) for value in (wanted_value, found_value)
        )
        return is_value >= at_least
    return found_value == wanted_value


def _cure(error: str) -> str:
    if error == "InvalidReplicationFactorError":
        return ". Set CALLFUNNEL_REPLICATION_FACTOR, for a single broker CALLFUNNEL_PROFILE=development."
    if error in ("TopicAuthorizationFailedError", "ClusterAuthorizationFailedError"):
        return ". Grant Create on it (`callfunnel topics rights`), or have it created by somebody who may."
    return "."

"""What a cluster tells of its topics: any broker may answer, and one learns of a topic later than others."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kafka import KafkaAdminClient

ASKED_TIMES = 5
ASK_AGAIN_SECONDS = 0.2


def described(admin: KafkaAdminClient, names: Iterable[str]) -> list[dict[str, Any]]:
    """Each topic as `describe_topics` tells it; one that is missing has been asked for several times."""
    from kafka.errors import UnknownTopicOrPartitionError

    names = list(names)
    told: dict[str, dict[str, Any]] = {}
    for again in range(ASKED_TIMES):
        if again:
            if brokers_of(admin) in (1, None):
                break
            time.sleep(ASK_AGAIN_SECONDS)
        told |= {topic["name"]: topic for topic in admin.describe_topics(names)}
        unknown = UnknownTopicOrPartitionError.errno
        names = [name for name in names if told[name]["error_code"] == unknown]
        if not names:
            break
    return list(told.values())


def brokers_of(admin: KafkaAdminClient) -> int | None:
    """How many there are; None where the broker, or kafka-python with one before Kafka 3.7, cannot say."""
    from kafka.errors import KafkaError

    try:
        return len(admin.describe_cluster()["brokers"])
    except (KeyError, KafkaError):
        return None

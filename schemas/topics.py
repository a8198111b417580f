"""The topics callfunnel lives on, as data: whoever creates or checks them reads this and nothing else.

The law: all four have the same number of partitions, because a partition of the source, its dead letters and
its two changelogs belong to one worker at a time.
"""

from base64 import urlsafe_b64encode

from msgspec import Struct

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_MIB = 1024 * 1024

LARGEST_MESSAGE = 8 * _MIB
"""Of what is written to changelogs and dead letters, in bytes."""

SOURCE_MESSAGE = 1_000_000
"""What a source takes at least, in bytes: events of other partitions are sent home in batches. Kafka's own
default is a little more."""


class TopicSpec(Struct, frozen=True):
    """One topic as it has to be. `config` holds only what must differ from a broker's own defaults."""

    name: str
    partitions: int
    replication_factor: int
    config: dict[str, str]


WHY = {
    "cleanup.policy": "events and dead letters age out; of a changelog the newest row of each key stays",
    "retention.ms": "how long a worker may be away and still miss nothing; a history is kept whole",
    "message.timestamp.type": "ages are counted by the broker's clock; only a history keeps its own times",
    "max.message.bytes": "a batch of rows is written whole; a dead letter is its record plus headers; events "
    "that are sent home go in batches",
    "min.compaction.lag.ms": "a row that a recovering worker is about to read is not compacted away under it",
    "segment.ms": "the open segment is never compacted, so it is closed hourly",
    "min.cleanable.dirty.ratio": "compacts early: the changelog's size is the time a recovery takes",
    "min.insync.replicas": "an acknowledged record survives the loss of a broker",
}
"""Why each setting is there, in one line."""


def funnel_changelog(app_id: str) -> str:
    """The name of the topic that holds the rows of the funnel tables."""
    return f"{app_id}-funnel-changelog"


def leads_changelog(app_id: str) -> str:
    """The name of the topic that holds the facts of each lead."""
    return f"{app_id}-leads-changelog"


def resume_group(app_id: str) -> str:
    """The consumer group, without members, whose offsets say up to where poison stops a partition no more."""
    return f"{app_id}-resume"


def topics(
    *,
    app_id: str,
    source: str,
    dead_letters: str,
    partitions: int,
    replication_factor: int,
    min_insync_replicas: int,
    clock: str,
) -> tuple[TopicSpec, ...]:
    """The four topics: source, dead letters, funnel changelog, leads changelog.

    `clock` is "wall" for a live floor, "event" for the replay of history (see `schemas.codec.Limits`).
    """

    def spec(name: str, config: dict[str, str]) -> TopicSpec:
        acknowledged = {"min.insync.replicas": str(min_insync_replicas)}
        return TopicSpec(name, partitions, replication_factor, config | acknowledged)

    changelog = {
        "cleanup.policy": "compact",
        "message.timestamp.type": "LogAppendTime",
        "max.message.bytes": str(LARGEST_MESSAGE),
        "min.compaction.lag.ms": str(_HOUR_MS),
        "segment.ms": str(_HOUR_MS),
        "min.cleanable.dirty.ratio": "0.2",
    }
    live = {"retention.ms": str(30 * _DAY_MS), "message.timestamp.type": "LogAppendTime"}
    history = {"retention.ms": "-1", "message.timestamp.type": "CreateTime"}
    return (
        spec(
            source,
            {"cleanup.policy": "delete", "max.message.bytes": str(SOURCE_MESSAGE)}
            | {"wall": live, "event": history}[clock],
        ),
        spec(dead_letters, {"cleanup.policy": "delete", "max.message.bytes": str(LARGEST_MESSAGE)} | live),
        spec(funnel_changelog(app_id), changelog),
        spec(leads_changelog(app_id), changelog),
    )


NO_ID = bytes(16)


def shown_id(topic_id: bytes) -> str:
    """A topic's id (KIP-516, 16 bytes) as Kafka's tools show it; "" for none."""
    return "" if topic_id == NO_ID else urlsafe_b64encode(topic_id).rstrip(b"=").decode()

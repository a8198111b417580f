"""The rights on Kafka (ACLs) that are enough for each kind of client, and the commands that grant them.

Read and Write of a topic include Describe, Write of a transactional id does, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Literal

from msgspec import Struct
from msgspec.structs import replace

from callfunnel.agents.config import Settings
from callfunnel.schemas.topics import funnel_changelog, leads_changelog, resume_group

if TYPE_CHECKING:
    from kafka import KafkaAdminClient

Role = Literal["worker", "view", "publisher", "administrator"]


class Right(Struct, frozen=True):
    """What may be done (Kafka's names of operations) with a topic, a group or a transactional id."""

    resource: Literal["topic", "group", "transactional-id", "cluster"]
    name: str
    operations: tuple[str, ...]
    is_prefix: bool = False

    def __str__(self) -> str:
        return f"{' and '.join(self.operations)} on {self.resource} {self.name}{'*' * self.is_prefix}"

    def command(self, broker: str, principal: str) -> str:
        """What grants it, with Kafka's own tool."""
        resource = "--cluster" if self.resource == "cluster" else f"--{self.resource} {self.name}"
        operations = " ".join(f"--operation {operation}" for operation in self.operations)
        pattern = " --resource-pattern-type prefixed" if self.is_prefix else ""
        return (
            f"kafka-acls.sh --bootstrap-server {broker} --add --allow-principal {principal} "
            f"{operations} {resource}{pattern}"
        )


def needed(settings: Settings) -> Mapping[Role, tuple[Right, ...]]:
    """What each kind of client needs under these settings."""
    source, letters = settings.source_topic, settings.dead_letter_topic
    changelogs = funnel_changelog(settings.app_id), leads_changelog(settings.app_id)
    return {
        "worker": (
            *(
                Right("topic", topic, ("Read", "Write", "DescribeConfigs"))
                for topic in (source, letters, *changelogs)
            ),
            Right("group", settings.app_id, ("Read",)),
            *((Right("group", resume_group(settings.app_id), ("Describe",)),) if settings.dlq_stop else ()),
            Right("transactional-id", f"{settings.app_id}-", ("Write",), is_prefix=True),
        ),
        "view": (Right("topic", changelogs[0], ("Read",)), Right("topic", source, ("Describe",))),
        "publisher": (Right("topic", source, ("Write", "DescribeConfigs")),),
        "administrator": (
            *(
                Right("topic", topic, ("Create", "Describe", "DescribeConfigs", "AlterConfigs"))
                for topic in (source, letters, *changelogs)
            ),
            Right("topic", source, ("Read",)),
            Right("group", resume_group(settings.app_id), ("Read",)),
        ),
    }


def lacking(admin: KafkaAdminClient, settings: Settings) -> Iterator[Right]:
    """What this client may not do of what a worker has to do with topics that exist, and with its groups.

    Brokers that do not tell (Kafka before 2.3, and some that are not Kafka) leave it open.
    Transactional ids cannot be asked for.
    """
    from kafka.errors import (
        CoordinatorNotAvailableError,
        GroupAuthorizationFailedError,
        TopicAuthorizationFailedError,
        for_code,
    )

    of_topics = {right.name: right for right in needed(settings)["worker"] if right.resource == "topic"}
    for topic in admin.describe_topics(list(of_topics)):
        right = of_topics[topic["name"]]
        if for_code(topic["error_code"]) is TopicAuthorizationFailedError:
            yield right
        elif not topic["error_code"]:
            yield from _without(right, topic.get("authorized_operations"))
    for of_group in (right for right in needed(settings)["worker"] if right.resource == "group"):
        try:
            group = admin.describe_groups([of_group.name])[of_group.name]
        except GroupAuthorizationFailedError:
            yield of_group
        except CoordinatorNotAvailableError:
            return  # Kafka makes its topic of groups when the first one is asked for
        else:
            yield from _without(of_group, group.get("authorized_operations"))


def _without(right: Right, allowed: Iterable[str] | None) -> Iterator[Right]:
    """The part of the right that is not among Kafka's `allowed` operations; nothing where it told none."""
    have = set(allowed or ())
    missing = tuple(
        operation
        for operation in right.operations
        if re.sub(r"(?<!^)(?=[A-Z])", "_", operation).upper() not in have
    )
    if have and missing:
        yield replace(right, operations=missing)


def told(rights: Iterable[Right], settings: Settings) -> str:
    """That these rights are lacking, and the commands that grant them."""
    rights = list(rights)
    principal = f"User:{settings.sasl_username}" if settings.sasl_username else "User:NAME"
    commands = [right.command(settings.broker, principal) for right in rights]
    lacking = f"this client lacks {', '.join(map(str, rights))}. Nothing is lost."
    return "\n".join([f"{lacking} Grant it (remedy grant-rights):", *commands])

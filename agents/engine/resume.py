"""How an operator lets a stopped partition go on: said once, known to every worker, in no log of records.

It is an offset that is committed for a consumer group without members: durable, by partition, and no worker
has to be reached for it or is fenced by it. Up to that offset of the source, poison stops the partition no
more.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import closing

from callfunnel.agents.config import Settings
from callfunnel.agents.errors import Failure, SettingError
from callfunnel.agents.kafka.connection import admin_client, aiokafka_options, kafka_python_options
from callfunnel.schemas.topics import resume_group


def asked(settings: Settings) -> Callable[[int], Awaitable[int | None]]:
    """The function that says up to which source offset a partition may go on; None: nobody has said so."""
    client = aiokafka_options(settings)

    async def ask(partition: int) -> int | None:
        from aiokafka import TopicPartition
        from aiokafka.admin import AIOKafkaAdminClient

        tp = TopicPartition(settings.source_topic, partition)
        admin = AIOKafkaAdminClient(**client)
        try:
            await admin.start()
            offsets = await admin.list_consumer_group_offsets(resume_group(settings.app_id), partitions=[tp])
        finally:
            await admin.close()
        offset = offsets[tp].offset
        return offset if offset >= 0 else None

    return ask


def resume(settings: Settings, partitions: Collection[int]) -> Mapping[int, int]:
    """Let stopped partitions go on; for each, the offset at which its source ends now.

    Raises BrokerUnavailable, SettingError for a partition that the source does not have, Failure where the
    broker refuses.
    """
    from kafka import KafkaConsumer, TopicPartition
    from kafka.errors import KafkaError
    from kafka.structs import OffsetAndMetadata

    source, group = settings.source_topic, resume_group(settings.app_id)
    admin_client(settings).close()
    try:
        with closing(
            KafkaConsumer(**kafka_python_options(settings), group_id=group, enable_auto_commit=False)
        ) as consumer:
            there = consumer.partitions_for_topic(source) or set()
            if strange := set(partitions) - there:
                raise SettingError(f"{source} has no partition {min(strange)}: it has {len(there)} of them.")
            tps = [TopicPartition(source, number) for number in partitions]
            consumer.assign(tps)
            ends = consumer.end_offsets(tps)
            consumer.commit({tp: OffsetAndMetadata(end, "", -1) for tp, end in ends.items()})
    except KafkaError as error:
        raise Failure(
            f"The broker does not let partitions of {source} go on: {error!r}. It takes the right to read "
            f"{source} and the consumer group {group}."
        ) from error
    return {tp.partition: end for tp, end in ends.items()}

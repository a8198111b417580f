"""The funnel table as it is on the broker, read once, to the end of its changelog: for comparisons."""

import asyncio
from collections.abc import Mapping

from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

from agents.config import Settings
from agents.connection import aiokafka_options
from agents.read_committed import repair
from schemas.rows import POSITION_KEY, Columns, Position, RowKey, decode_columns, decode_key, decode_position
from schemas.topics import funnel_changelog


class Tables(Struct):
    """The funnel table of one partition."""

    position: Position | None
    rows: dict[RowKey, Columns]


def read_tables(settings: Settings, partitions: int) -> Mapping[int, Tables]:
    """The funnel table by partition (there are `partitions`), as committed at this moment."""
    return asyncio.run(_read(settings, partitions))


async def _read(settings: Settings, count: int) -> Mapping[int, Tables]:
    repair()
    topic = funnel_changelog(settings.app_id)
    partitions = [TopicPartition(topic, number) for number in range(count)]
    consumer = AIOKafkaConsumer(
        **aiokafka_options(settings), isolation_level="read_committed", enable_auto_commit=False
    )
    await consumer.start()
    try:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        raw: dict[int, dict[bytes, bytes]] = {tp.partition: {} for tp in partitions}
        while any([await consumer.position(tp) < ends[tp] for tp in partitions]):
            for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                held = raw[tp.partition]
                for record in records:
                    if record.value is None:
                        held.pop(record.key, None)
                    else:
                        held[record.key] = record.value
    finally:
        await consumer.stop()
    return {number: _tables(held) for number, held in sorted(raw.items())}


def _tables(held: dict[bytes, bytes]) -> Tables:
    position = held.pop(POSITION_KEY, None)
    rows = {decode_key(key): decode_columns(value) for key, value in held.items()}
    return Tables(decode_position(position) if position else None, rows)

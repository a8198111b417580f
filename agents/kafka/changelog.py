"""The tables as they are on the broker, read once: the rows of the funnel, or the positions alone."""

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC
from typing import Any
from zoneinfo import ZoneInfo

from aiokafka import AIOKafkaConsumer, TopicPartition
from msgspec import Struct

from callfunnel.agents.config import Settings
from callfunnel.agents.kafka.connection import aiokafka_options
from callfunnel.agents.kafka.hanging import new_reader
from callfunnel.agents.kafka.microbatch import fetch
from callfunnel.agents.kafka.read_committed import repair
from callfunnel.schemas.topics import funnel_changelog
from callfunnel.streams.rows import (
    POSITION_KEY,
    Columns,
    Position,
    RowKey,
    decode_columns,
    decode_key,
    decode_position,
    generation_of,
    whole,
)

PATIENCE_SECONDS = 30.0
LOOK_BACK = 1_000
"""Offsets that are read first, from the end: a position is the last row of a transaction."""


class Tables(Struct):
    """The funnel table of one partition."""

    position: Position | None
    rows: dict[RowKey, Columns]
    """Whole: those of hours, days and all time hold their minutes, too."""


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
    return {number: tables_of(held) for number, held in sorted(raw.items())}


def tables_of(held: Mapping[bytes, bytes]) -> Tables:
    """The table of a partition, from the newest value of each key of its changelog."""
    position = decode_position(held[POSITION_KEY]) if POSITION_KEY in held else None
    in_force = position.generation if position else 0
    rows = {
        decode_key(key): decode_columns(value)
        for key, value in held.items()
        if key != POSITION_KEY and generation_of(key) == in_force
    }
    zone = ZoneInfo(position.timezone) if position and position.timezone else UTC
    return Tables(position, whole(rows, zone))


async def funnel_positions(
    client: Mapping[str, Any], app_id: str, partitions: Iterable[int]
) -> Mapping[int, Position]:
    """How far the tables of `app_id` go, of those partitions that have any. Raises as `last_positions`."""
    rows = await last_positions(client, funnel_changelog(app_id), POSITION_KEY, partitions)
    return {number: decode_position(row) for number, row in rows.items() if row is not None}


async def last_positions(
    client: Mapping[str, Any], topic: str, key: bytes, partitions: Iterable[int]
) -> Mapping[int, bytes | None]:
    """The newest committed position of each partition of a changelog, where it has one.

    Raises `KafkaError`, and `TimeoutError` where the broker does not hand out what there is.
    """
    tps = [TopicPartition(topic, number) for number in partitions]
    async with new_reader(client, "read_committed") as consumer:
        begins, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        return {tp.partition: await _last(consumer, tp, key, begins[tp], ends[tp]) for tp in tps}


async def _last(
    consumer: AIOKafkaConsumer, tp: TopicPartition, key: bytes, begin: int, end: int
) -> bytes | None:
    """The value of the last record with this key, looking back farther and farther."""
    consumer.assign([tp])
    start, span, found = end, LOOK_BACK, None
    while found is None and start > begin:
        stop, start = start, max(begin, start - span)
        consumer.seek(tp, start)
        read_to = start
        while read_to < stop:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not (arrived := await fetch(consumer, LOOK_BACK, 0.2)):
                    pass
            batch = arrived[tp]
            read_to = batch.end
            found = dict(zip(batch.keys, batch.values, strict=True)).get(key, found)
        span *= 8
    consumer.pause(tp)  # else the next question would wait behind what comes after it
    return found

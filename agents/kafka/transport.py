"""The Faust transport that carries a whole fetch of one partition as one message.

Faust costs about 100 µs a message, so a message must be a micro-batch. Everything private of Faust and
aiokafka that this needs is in this module, in `batches.py`, `microbatch.py`, `recovery.py` and
`producer.py`; `tests/contract/test_faust_seam.py` fails when it changes.
"""

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any
from weakref import WeakSet

import faust
from aiokafka import TopicPartition
from aiokafka.consumer import consumer as client
from aiokafka.errors import IllegalGenerationError, KafkaError
from aiokafka.protocol.group import LeaveGroupRequest
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage, EventT
from mode import Service

from callfunnel.agents import failpoints
from callfunnel.agents.kafka.batches import Damaged
from callfunnel.agents.kafka.microbatch import (
    FETCH_AGAIN_SECONDS,
    Fetched,
    MicroBatch,
    drain_all,
    fetch_by,
    refuse_damaged,
)
from callfunnel.agents.kafka.read_committed import FIRST_BYTES
from callfunnel.agents.remedies import REMEDIES
from callfunnel.streams.records import Records

log = logging.getLogger(__name__)

FORGOTTEN_TIMES = 3
"""A static member that its group forgets so often within 30 s is not alone under its name."""
FORGOTTEN_SECONDS = 30.0

SCHEME = "microbatch"
TRANSPORTS.aliases[SCHEME] = f"{__name__}:Transport"

FETCH_MAX_WAIT_MS = 100
"""How long the broker may hold an empty answer. What else is asked on that connection waits behind it, and
a worker that starts asks several times; records end the wait at once."""

ASK_SECONDS = 1.0
"""How often the worker asks where its partitions of the source end."""


MOST_HELD_BYTES = 64 << 20
"""Of batches of the source that are on their way: beyond that, what has arrived stays packed."""


class Schema(faust.Schema):  # type: ignore[misc]
    """Lets a micro-batch through as it is: decoding belongs to the fold, where a bad record is a value."""

    def loads_key(self, app: Any, message: Any, **_: Any) -> Any:
        return message.key

    def loads_value(self, app: Any, message: Any, **_: Any) -> Any:
        return message.value


class _GroupCoordinator(client.GroupCoordinator):  # type: ignore[misc]
    """A member whose commit comes amid a rebalance joins again, or leaves, as itself; so does Java's.

    aiokafka would forget its name, join under a new one and never leave: the group would wait for the old
    one for a session timeout, on noida-db for ever.
    """

    member_id: str
    generation: int

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.forgotten: deque[float] = deque(maxlen=FORGOTTEN_TIMES)
        """When the group knew this member no more although it had joined: seconds of the monotonic clock."""

    async def _do_rejoin_group(self, subscription: Any) -> bool:
        """Kafka hands a static name what it had before, although it may read another topic by now; aiokafka
        would stand still. Who leaves gets a share of its own."""
        try:
            return await super()._do_rejoin_group(subscription)  # type: ignore[no-any-return]
        except AssertionError:
            with suppress(KafkaError):
                await self._client.send(self.coordinator_id, LeaveGroupRequest(self.group_id, self.member_id))
            self.reset_generation()
            return False

    async def _do_heartbeat(self) -> bool:
        member = self.member_id
        answered: bool = await super()._do_heartbeat()
        if member and not self.member_id:
            self.forgotten.append(time.monotonic())
        return answered

    async def _do_commit_offsets(self, assignment: Any, offsets: Any) -> None:
        member = self.member_id, self.generation
        try:
            failpoints.hit("offset-sent")
            await super()._do_commit_offsets(assignment, offsets)
            failpoints.hit("offset-committed")
        except IllegalGenerationError:
            self.member_id, self.generation = member
            raise

    async def close(self) -> None:
        """Leave at once, on the connection for data: aiokafka first ends a join that waits for the others,
        and they may be waiting for us."""
        if self.generation > 0 and self._group_instance_id is None and self.coordinator_id is not None:
            with suppress(KafkaError):
                await self._client.send(self.coordinator_id, LeaveGroupRequest(self.group_id, self.member_id))
            self.reset_generation()
        await super().close()


client.GroupCoordinator = _GroupCoordinator


class _ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._held: WeakSet[MicroBatch] = WeakSet()
        self.damaged: dict[TP, Damaged] = {}
        """The partitions of the source that stand still, each before records that nobody can read."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        consumer._fetch_max_bytes = FIRST_BYTES
        return consumer

    @Service.task  # type: ignore[untyped-decorator]
    async def _ask(self) -> None:
        """Ask where the source ends, once a second, also while this worker owns no partition."""
        while not self.should_stop:
            await self.sleep(ASK_SECONDS)
            asked = self._of_source() or {TopicPartition(self.app.source_topic, 0)}
            with suppress(KafkaError):
                self.app.answers.hear(await self._ensure_consumer().end_offsets(asked))

    @Service.task  # type: ignore[untyped-decorator]
    async def _look(self) -> None:
        """Note which fetches were answered: one silent leader holds up what `_ask` is told of all others."""
        polled: dict[TopicPartition, int | None] = {}
        while not self.should_stop:
            await self.sleep(ASK_SECONDS)
            consumer, before = self._ensure_consumer(), polled
            polled = {tp: consumer.last_poll_timestamp(tp) for tp in self._of_source()}
            self.app.answers.watch(polled)
            heard = [tp for tp, at in polled.items() if at is not None and at != before.get(tp)]
            if heard:
                self.app.answers.hear({tp: consumer.highwater(tp) for tp in heard})

    def _of_source(self) -> set[TopicPartition]:
        assigned = self._ensure_consumer().assignment()
        return {tp for tp in assigned if tp.topic == self.app.source_topic}

    def highwater(self, tp: TP) -> int | None:
        """The end of the log; None where nothing was heard of it, or it is another's since a moment."""
        with suppress(AssertionError, KeyError):
            return self._ensure_consumer().highwater(tp)  # type: ignore[no-any-return]
        return None

    def topic_partitions(self, topic: str) -> int | None:
        """How many there are; None where nothing was heard of the topic.

        Faust asks the group's coordinator, where the leader of the group alone knows.
        """
        if self._consumer is not None:
            heard = self._consumer._client.cluster.partitions_for_topic(topic)
            if heard is not None:
                return len(heard)
        found: int | None = super().topic_partitions(topic)
        return found

    def stable_end(self, tp: TP) -> int | None:
        """As `highwater`, of what may be read: up to the first transaction that is open."""
        with suppress(AssertionError, KeyError):
            return self._ensure_consumer().last_stable_offset(tp)  # type: ignore[no-any-return]
        return None

    def forgotten(self) -> Sequence[float]:
        coordinator = self._consumer and self._consumer._coordinator
        return coordinator.forgotten if isinstance(coordinator, _GroupCoordinator) else ()

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: Any,
        timeout: float | None = None,  # noqa: ASYNC109  (Faust's signature)
        max_records: int | None = None,
    ) -> Mapping[TP, list[MicroBatch]]:
        if not self.consumer.flow_active:
            return {}
        drained = await fetch_by(
            consumer,
            lambda: self._drain(consumer._fetcher, active_partitions, max_records or 10_000),
            timeout or 0,
        )
        return {TP(*tp): [batch] for tp, batch in drained.items()}

    def _drain(self, fetcher: Any, active_partitions: Any, limit: int) -> Fetched:
        """Take only what Faust will pass on: it drops the rest, and the position would be behind it.

        `active_partitions` is Faust's own set. A rebalance empties it amid a fetch, which means none.
        """
        active = set(active_partitions if self.consumer.flow_active else ())
        if sum(batch.size for batch in self._held) > MOST_HELD_BYTES:
            active = {tp for tp in active if self._is_changelog(tp)}
        drained = drain_all(
            fetcher, active, limit, self.app.consumer_generation_id, self._stand_still, self._kind_of
        )
        for tp, batch in drained.items():
            if not self._is_changelog(tp):
                self.damaged.pop(TP(*tp), None)
                self._held.add(batch)
                if batch.end == batch.start:
                    self.app.ingest.reads_on(tp.partition)
        return drained

    def _kind_of(self, tp: Any) -> type[Records] | None:
        return self.app.funnel_table.tables_type.records_type if self._is_changelog(tp) else None

    def _is_changelog(self, tp: Any) -> bool:
        return tp.topic in self.app.tables.changelog_topics

    def _stand_still(self, tp: Any, damaged: Damaged) -> None:
        """What is damaged keeps its own partition back. The other partitions, and the worker, go on."""
        if self._is_changelog(tp):
            refuse_damaged(tp, damaged)
        before = self.damaged.get(TP(*tp))
        self.damaged[TP(*tp)] = damaged
        if before is None or before.first != damaged.first:
            log.critical(
                "%s/%s stands still: %s They are asked for again every %g s, and it goes on by itself. If "
                "there is no whole copy, give these %s records up: %s. That offset is %s; those before "
                "offset %s are counted already.",
                *(tp.topic, tp.partition, damaged, FETCH_AGAIN_SECONDS),
                *(damaged.records, REMEDIES["give-up"], damaged.end, damaged.first),
            )


class Consumer(driver.Consumer):  # type: ignore[misc]
    """Faust's consumer, with offsets counted by batches."""

    def _new_consumer_thread(self) -> _ConsumerThread:
        return _ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    def _to_message(self, tp: TP, batch: MicroBatch) -> ConsumerMessage:
        return ConsumerMessage(
            topic=batch.topic, partition=batch.partition, offset=batch.end - 1,
            timestamp=batch.timestamps[-1] / 1000 if batch.timestamps else 0.0, timestamp_type=0, headers=(),
            key=None, value=batch, checksum=None, serialized_key_size=0, serialized_value_size=0, tp=tp,
            generation_id=batch.generation,
        )  # fmt: skip

    def stable_end(self, tp: TP) -> int | None:
        end: int | None = self._thread.stable_end(tp)
        return end

    def has_twin(self) -> bool:
        """Whether another member joins under the static name of this one, again and again."""
        forgotten = self._thread.forgotten()
        return len(forgotten) == FORGOTTEN_TIMES and time.monotonic() - min(forgotten) < FORGOTTEN_SECONDS

    def is_damaged(self, tp: TP) -> bool:
        """Whether the next records of the partition are damaged on the broker."""
        return tp in self._thread.damaged

    def drop(self, event: EventT) -> None:
        """The batch is not acknowledged: a rebalance must not wait for it, whoever still holds it."""
        self._unacked_messages.discard(event.message)

    async def verify_all_partitions_active(self) -> None:
        """Nothing: the worker watches by what is counted, and this was a third of what an idle one takes."""

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Offsets jump from batch to batch; holes are caught by the batches' positions instead."""

    def _new_offset(self, tp: TP) -> int | None:
        """The offset to commit, for lag dashboards: where to resume is said by the state.

        Batches of a partition are acknowledged in order, each only when it continues the one before, so the
        newest acknowledgement covers all.
        """
        acked = self._acked[tp]
        if not acked:
            return None
        offset: int = max(acked) + 1
        acked.clear()
        self._acked_index[tp].clear()
        return offset


class Transport(driver.Transport):  # type: ignore[misc]
    """`microbatch://HOST:PORT`"""

    Consumer = Consumer

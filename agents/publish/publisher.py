"""Sends events to Kafka so that each one is either acknowledged or told back with the reason.

The law: nothing is dropped silently. An event the contract refuses is a value (`Rejected`) and is never sent;
one that Kafka does not take ends the publisher with a `Failure` that says what to do. Publishing again is
always safe, because the engine counts an `event_id` once.
"""

import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self
from uuid import UUID

import orjson
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import (
    AuthorizationError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RetriableError,
)
from kafka.producer.future import FutureRecordMetadata
from msgspec import Struct

from callfunnel.agents.errors import BrokerUnavailable, Failure, TopicsWrong
from callfunnel.agents.kafka.described import described
from callfunnel.agents.publish.destination import OTHER, Acknowledged, missing
from callfunnel.schemas.codec import Decoder, Limits, Rejected
from callfunnel.schemas.topics import shown_id
from callfunnel.streams.rows import checksum

_CONNECT_MS = 10_000

MOST_IN_FLIGHT = 20_000
"""Most events sent and not acknowledged. The client knows no limit: a long file would pile up in memory."""

REFUSED_HELD = 1_000
"""Most refused events that a publisher remembers."""

_PRODUCER = {
    "acks": "all",
    "enable_idempotence": True,
    "allow_auto_create_topics": False,
    "metrics_enabled": False,
    # The client's checksum is plain Python: 23 µs an event; packed, it runs over a tenth of the bytes.
    "compression_type": "gzip",
    "batch_size": 131_072,
    "linger_ms": 20,
}


class Refused(Struct, frozen=True):
    """An event that was not sent: its position in the source (1 is the first), and why."""

    position: int
    reason: str
    detail: str


def _topic_id(described: Mapping[str, Any]) -> str:
    """The id that a description of a topic gives; empty where the broker gives none."""
    return shown_id(UUID(described["topic_id"] or "0" * 32).bytes)


class _Producer(KafkaProducer):  # type: ignore[misc]
    """If a record is not sent in time, kafka-python's `close` raises, and the producer stays open."""

    def close(self, timeout: float | None = None, null_logger: bool = False) -> None:
        try:
            super().close(timeout, null_logger)
        except KafkaTimeoutError:
            self._sender.force_close()
            self._closed = True


class Publisher:
    """Publishes events in order, from one thread. A context manager: leaving it flushes.

    Within it, Ctrl-C waits until a record is written and noted: half of one would be sent with its batch, and
    nobody could read the partition past it.

    `client` are further arguments for kafka-python (security). With `replay`, a record carries the time of
    its event and none is early or late: a history keeps its own times. Otherwise it is the time of sending.

    Raises `BrokerUnavailable` when no broker answers (10 s at the start, later `timeout_seconds`),
    `TopicsWrong` when the topic is missing or would not keep what is replayed, `Failure` when the broker does
    not take an event; after any of these the publisher is at its end.
    """

    def __init__(
        self,
        bootstrap: str,
        topic: str,
        *,
        client: Mapping[str, Any] | None = None,
        limits: Limits | None = None,
        replay: bool = False,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.topic = topic
        self._refused: deque[Refused] = deque(maxlen=REFUSED_HELD)
        self._bootstrap = bootstrap
        limits = limits or Limits()
        self._decode = Decoder(limits.of_history(time.time_ns() // 1_000_000) if replay else limits).decode
        self._replay = replay
        self._timeout_seconds = timeout_seconds
        self._position = 0
        self._acknowledged = 0
        self._in_flight: deque[tuple[int, int, FutureRecordMetadata]] = deque()
        """Position, checksum, and what the client promises."""
        self.last: Acknowledged | None = None
        """The newest event of which Kafka has said where it is."""
        self.topic_id = ""
        """The topic's own id; empty where the broker gives none."""
        self._failure: Failure | None = None
        self._handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._is_undisturbed = False
        self._signal = 0
        """A signal that came meanwhile."""
        timeout_ms = int(timeout_seconds * 1000)
        self._connection = {
            **(client or {}),
            "bootstrap_servers": bootstrap.split(","),
            "bootstrap_timeout_ms": min(timeout_ms, _CONNECT_MS),
        }
        try:
            self._keeps_ms = self._look_at_topic()
            self._producer = _Producer(
                **self._connection,
                **_PRODUCER,
                max_block_ms=timeout_ms,
                delivery_timeout_ms=timeout_ms,
                request_timeout_ms=min(30_000, timeout_ms // 2),
            )
        except KafkaError as error:
            raise self._explained(error) from error

    @property
    def settled(self) -> tuple[int, int]:
        """`settled_through` and `acknowledged` of the same moment."""
        self._settle()
        through = self._in_flight[0][0] - 1 if self._in_flight else self._position
        return through, self._acknowledged

    @property
    def acknowledged(self) -> int:
        """How many events Kafka has acknowledged."""
        return self.settled[1]

    @property
    def settled_through(self) -> int:
        """The position up to which each event is acknowledged or refused: behind it a next run goes on."""
        return self.settled[0]

    @property
    def refused(self) -> list[Refused]:
        """The newest refused events, oldest first: `REFUSED_HELD` at most. `publish` tells each one."""
        return list(self._refused)

    def publish(self, event: Mapping[str, Any] | bytes, *, position: int | None = None) -> Rejected | None:
        """Send one event (bytes as they are), or return why the contract refuses it.

        `position` is where it stands in its source, rising; without it, events are counted. Does not wait for
        the acknowledgement, unless `MOST_IN_FLIGHT` events lack theirs.
        """
        self._settle()
        if len(self._in_flight) >= MOST_IN_FLIGHT:
            self._await_oldest()
        self._raise_failure()
        value = event if isinstance(event, bytes) else orjson.dumps(event)
        if position is None:
            position = self._position + 1
        verdict = self._decode(value, None, -1 if self._replay else time.time_ns() // 1_000_000)
        if isinstance(verdict, Rejected):
            self._refused.append(Refused(position, verdict.reason, verdict.detail))
            self._position = position
            return verdict
        if self._would_vanish(verdict.at_ms):
            raise TopicsWrong(
                f"{self.topic} keeps no record as old as event {position}: it would be taken and vanish. "
                "A topic for history has retention.ms=-1 (CALLFUNNEL_CLOCK=event callfunnel topics create)."
            )
        key = verdict.lead_id.encode()
        with self._undisturbed():
            try:
                sent = self._producer.send(
                    self.topic,
                    value,
                    key=key,
                    timestamp_ms=verdict.at_ms if self._replay else None,
                )
            except KafkaError as error:
                self._failure = self._explained(error)
                raise self._failure from error
            self._in_flight.append((position, checksum(key, value), sent))
            self._position = position
        return None

    def flush(self) -> None:
        """Wait until every event sent so far is acknowledged."""
        self._settle()
        if self._in_flight and not self._failure:
            try:
                self._producer.flush(self._timeout_seconds)
            except KafkaError as error:
                self._failure = self._explained(error)
            self._settle()
        self._raise_failure()

    def misfit(self, topic_id: str, last: Acknowledged | None, acknowledged: int) -> str | None:
        """Why this is not the topic that acknowledged so many events before; None if nothing shows that.

        `topic_id` and `last` are those of the publisher that sent them, as far as they are known.
        """
        named = f"{self.topic} at {self._bootstrap}"
        if not acknowledged:
            return None
        if topic_id and self.topic_id and topic_id != self.topic_id:
            return (
                f"{named} is not the topic that they were published to: its id is {self.topic_id}, and the "
                f"other one's {topic_id}. {OTHER}"
            )
        is_same = bool(topic_id and self.topic_id)
        try:
            return missing(self._connection, self.topic, last, acknowledged, is_same=is_same)
        except KafkaError as error:
            raise self._explained(error) from error

    def close(self, timeout_seconds: float = 5.0) -> None:
        """Stop. What is not acknowledged within `timeout_seconds` may or may not arrive: publish it again."""
        self._producer.close(timeout_seconds)
        self._settle()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._on_signal)
        return self

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Ctrl-C waits until the end."""
        self._is_undisturbed = True
        try:
            yield
        finally:
            self._is_undisturbed = False
        if self._signal:
            number, self._signal = self._signal, 0
            signal.raise_signal(number)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._is_undisturbed:
            self._signal = number
        else:
            self._handlers[number](number, frame)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def _settle(self) -> None:
        """Take note of what Kafka said, oldest first, up to the first event it did not take."""
        if not self._in_flight or not self._in_flight[0][2].is_done:
            return
        with self._undisturbed():
            while self._in_flight and self._in_flight[0][2].is_done:
                position, crc, sent = self._in_flight[0]
                if sent.exception is not None:
                    self._failure = self._failure or self._explained(sent.exception, position)
                    return
                self._in_flight.popleft()
                self._acknowledged += 1
                if sent.value.offset >= 0:  # it is not told where a batch was written already
                    self.last = Acknowledged(sent.value.partition, sent.value.offset, crc)

    def _await_oldest(self) -> None:
        position, _, sent = self._in_flight[0]
        try:
            sent.get(self._timeout_seconds)
        except KafkaError as error:
            self._failure = self._failure or self._explained(error, position)
        self._settle()

    def _raise_failure(self) -> None:
        if self._failure:
            raise self._failure

    def _look_at_topic(self) -> int | None:
        """How long the topic keeps a record, counted from the time in the record; None if it does not matter.

        Asked first: a producer waits for a missing topic in vain, and some brokers create it on asking.
        """
        admin = KafkaAdminClient(**self._connection)
        try:
            (found,) = described(admin, [self.topic])
            if found["error_code"]:
                raise TopicsWrong(
                    f"Kafka at {self._bootstrap} has no topic {self.topic}, or does not show it. "
                    "`callfunnel topics create` makes it."
                )
            self.topic_id = _topic_id(found)
            if not self._replay:
                return None
            resource = ConfigResource(ConfigResourceType.TOPIC, self.topic)
            config = admin.describe_configs([resource], config_filter="all")["topic"][self.topic]
        finally:
            admin.close()
        keeps_ms = int(config["retention.ms"]["value"])
        by_its_own_time = config["message.timestamp.type"]["value"] == "CreateTime"
        return keeps_ms if by_its_own_time and keeps_ms >= 0 else None

    def _is_another(self) -> bool:
        """Whether a broker says that the topic is not the one that it was."""
        try:
            admin = KafkaAdminClient(**{**self._connection, "bootstrap_timeout_ms": 2_000})
        except KafkaError:
            return False
        try:
            (found,) = described(admin, [self.topic])
        except KafkaError:
            return False
        finally:
            admin.close()
        now = "" if found["error_code"] else _topic_id(found)
        return bool(self.topic_id) and now != self.topic_id

    def _would_vanish(self, at_ms: int) -> bool:
        return self._keeps_ms is not None and at_ms + self._keeps_ms < time.time_ns() // 1_000_000

    def _explained(self, error: BaseException, position: int | None = None) -> Failure:
        which = "an event" if position is None else f"event {position}"
        after = f"{self._acknowledged:,} events are acknowledged; publishing all of them again is safe."
        if not self._position:
            after = "Nothing is published yet."
        if isinstance(error, MessageSizeTooLargeError):
            return Failure(
                f"{self.topic} has no room for {which} ({error}). Raise its max.message.bytes. {after}"
            )
        if isinstance(error, AuthorizationError):
            return Failure(
                f"This client may not use {self.topic} ({error}). It needs WRITE and DESCRIBE, and "
                f"DESCRIBE_CONFIGS for a replay. {after}"
            )
        if isinstance(error, RetriableError):
            if self._is_another():
                return TopicsWrong(
                    f"{self.topic} was deleted, or deleted and made anew, while events were published to it. "
                    f"`callfunnel publish`, run again, says what it finds and asks what to do. {after}"
                )
            return BrokerUnavailable(
                f"Kafka at {self._bootstrap} does not answer ({error}). "
                f"Start it, or name another one with --broker HOST:PORT. {after}"
            )
        return Failure(f"Kafka at {self._bootstrap} did not take {which} ({error}). {after}")

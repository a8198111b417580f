"""Asks a broker for the id of a topic (KIP-516): aiokafka's own requests for metadata are older than ids.

Of one topic, and of the answer only as much as is needed: what follows the id is left unread.
"""

from io import BytesIO

from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
    UnsignedVarInt32,
)

from callfunnel.schemas.topics import NO_ID


class Uuid(AbstractType):  # type: ignore[misc]
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


TEXT = CompactString("utf-8")


class Answer(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32), ("host", TEXT), ("port", Int32), ("rack", TEXT), ("tags", TaggedFields)
            ),
        ),
        ("cluster_id", TEXT),
        ("controller_id", Int32),
        ("topics", UnsignedVarInt32),
        ("error_code", Int16),
        ("name", TEXT),
        ("topic_id", Uuid),
    )


class Metadata(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 11
    RESPONSE_TYPE = Answer
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", Uuid), ("name", TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class Ask(Request[Metadata]):  # type: ignore[misc]
    """Raises `NotImplementedError` where it is sent to a broker that knows no ids."""

    API_KEY = 3

    def __init__(self, topic: str) -> None:
        self._topic = topic

    def build(self, version: type[Metadata]) -> Metadata:
        return version([(NO_ID, self._topic, {})], False, False, {})

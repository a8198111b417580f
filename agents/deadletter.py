"""What becomes of rejected records: bytes as they came, the reason in the headers."""

from collections.abc import Iterable, Iterator

from agents.hanging import Headers
from agents.ledger import Record
from agents.microbatch import MicroBatch
from schemas.codec import Rejected

MOST_BYTES = 7 * 2**20
"""Of a dead letter's value; its topic takes 8 MiB. Who compresses can publish more."""

OFFSET, CONNECTOR = "__connect.errors.offset", "__connect.errors.connector.name"
"""The headers that say which record of the source a dead letter is about, and which app says so."""


def dead_letters(
    batch: MicroBatch, rejected: Iterable[tuple[int, Rejected]], received_ms: int, app_id: str
) -> Iterator[Record]:
    """What goes to the dead-letter topic: keys and values untouched; headers of Connect and of our own.

    A value that the topic would refuse is left out, and a header says how many bytes it had.
    """
    topic = "__connect.errors.topic", batch.topic.encode()
    partition = "__connect.errors.partition", b"%d" % batch.partition
    connector = CONNECTOR, app_id.encode()
    received_at = "callfunnel.received_at", b"%d" % received_ms
    for index, why in rejected:
        reason, detail = why.reason.encode(), why.detail.encode()
        headers = [
            *batch.headers[index],
            topic,
            partition,
            (OFFSET, b"%d" % batch.offsets[index]),
            connector,
            ("__connect.errors.exception.class.name", reason),
            ("__connect.errors.exception.message", detail),
            ("callfunnel.reason", reason),
            ("callfunnel.detail", detail),
            received_at,
        ]
        key, value = batch.keys[index], batch.values[index]
        if key is None and value is None:
            value = b""  # a record of nothing at all cannot be written
        if value is not None and len(value) > MOST_BYTES:
            headers.append(("callfunnel.left_out", b"%d" % len(value)))
            value = b""
        yield (key, value), headers, None


def source_offset(headers: Headers, app_id: str) -> int | None:
    """Which record of the source a dead letter of this app is about; None for what others wrote.

    What the publisher wrote comes before what we write, and the last of a name counts.
    """
    its = dict(headers)
    offset = its.get(OFFSET) or b""
    return int(offset) if its.get(CONNECTOR) == app_id.encode() and offset.isdigit() else None

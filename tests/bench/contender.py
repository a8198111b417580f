"""What the contenders share: the filled topic, read once from its beginning, and the totals they end with.

`python -m bench.NAME BROKER TOPIC EVENTS`; the last line on stdout is the contender's totals as JSON:
[[campaign, source, event type, events], …]
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Self

from confluent_kafka import Consumer


class Stream:
    """The values of the topic's records, fetched by librdkafka, up to as many as there are."""

    def __init__(self, broker: str, topic: str, events: int) -> None:
        self._events = events
        self._consumer = Consumer(
            {
                "bootstrap.servers": broker,
                "group.id": f"bench-{topic}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
            }
        )
        self._consumer.subscribe([topic])

    @classmethod
    def from_argv(cls) -> Self:
        return cls(sys.argv[1], sys.argv[2], int(sys.argv[3]))

    def __iter__(self) -> Iterator[bytes]:
        left = self._events
        while left:
            for message in self._consumer.consume(10_000, timeout=0.2):
                if message.error():
                    sys.exit(str(message.error()))
                yield message.value()
                left -= 1
        self._consumer.close()


def finish(totals: Mapping[tuple[str, str, str], int]) -> None:
    print(json.dumps(sorted([*key, n] for key, n in totals.items())), flush=True)

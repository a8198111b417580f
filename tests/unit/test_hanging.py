"""What is known of topics that may not be read or are made anew meanwhile; for the rest there are brokers."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiokafka.errors import OffsetOutOfRangeError, TopicAuthorizationFailedError

from callfunnel.agents.kafka import hanging
from callfunnel.agents.kafka.hanging import Tail

AT = "letters", 0


class Reader:
    """Says where the topic begins and ends, and gives no record."""

    def __init__(self, isolation_level):
        self._end = 10 if isolation_level == "read_uncommitted" else 7

    async def beginning_offsets(self, partitions):
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions):
        return dict.fromkeys(partitions, self._end)

    def assign(self, partitions): ...
    def seek(self, tp, offset): ...

    async def position(self, tp):
        return 0


def asked(monkeypatch, failure):
    @asynccontextmanager
    async def reader(client, isolation_level):
        yield Reader(isolation_level)

    async def fetch(reader, limit, seconds):
        raise failure

    monkeypatch.setattr(hanging, "new_reader", reader)
    monkeypatch.setattr(hanging, "fetch", fetch)

    async def main():
        return await hanging.hanging({}, [AT]), await hanging.last({}, AT, len)

    return asyncio.run(main())


def test_what_may_not_be_read_is_unknown(monkeypatch):
    assert asked(monkeypatch, TopicAuthorizationFailedError()) == ({AT: Tail()}, None)


def test_what_is_gone_fails(monkeypatch):
    with pytest.raises(OffsetOutOfRangeError):
        asked(monkeypatch, OffsetOutOfRangeError({}))

"""A worker that dies with its first transaction with a dead letter; some topics never hear how that ends.

LEFT_OUT names the topics, DIES says when: `before` or `after` the commit. The producer sends to the topics
without having the broker take them into the transaction. A broker that does not verify that writes the marker
everywhere else, as it does where a topic has no leader at that moment.
"""

import os
from collections.abc import Iterable

from aiokafka import TopicPartition

from callfunnel.agents import cli
from callfunnel.agents.engine import transactions
from callfunnel.agents.kafka import producer

LEFT_OUT, DIES = os.environ["LEFT_OUT"].split(), os.environ["DIES"]


class Producer(producer.Producer):
    _has_letters = False

    async def add_partitions(self, partitions: Iterable[tuple[str, int]]) -> None:
        asked = list(partitions)
        told = asked
        if len(asked) > 1:  # else it ends nothing
            self._has_letters = any(topic == os.environ["CALLFUNNEL_DEAD_LETTER_TOPIC"] for topic, _ in asked)
        if self._has_letters:
            told = [tp for tp in asked if tp[0] not in LEFT_OUT]
        await super().add_partitions(told)
        self._txn_manager._txn_partitions.update(TopicPartition(*tp) for tp in asked if tp not in told)

    async def commit_transaction(self) -> None:
        if self._has_letters and DIES == "before":
            os._exit(137)
        await super().commit_transaction()
        if self._has_letters:
            os._exit(137)


transactions.Producer = Producer  # type: ignore[misc]
cli.main()

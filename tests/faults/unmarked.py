"""A worker one of whose topics never hears how a transaction ends; the topic is named in LEFT_OUT.

Its producer sends to the topic without having the broker take it into the transaction. A broker that does not
verify that writes the marker everywhere else, as it does where the topic has no leader at that moment.
"""

import os
from collections.abc import Iterable

from aiokafka import TopicPartition

from agents import cli, ledger


class Producer(ledger.Producer):
    async def add_partitions(self, partitions: Iterable[tuple[str, int]]) -> None:
        asked = list(partitions)
        told = [tp for tp in asked if tp[0] != os.environ["LEFT_OUT"]] or asked
        await super().add_partitions(told)
        self._txn_manager._txn_partitions.update(TopicPartition(*tp) for tp in asked if tp not in told)


ledger.Producer = Producer  # type: ignore[misc]
cli.main()

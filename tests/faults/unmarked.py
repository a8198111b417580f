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
        left_out = [tp for tp in partitions if tp[0] == os.environ["LEFT_OUT"]]
        await super().add_partitions(tp for tp in partitions if tp not in left_out)
        self._txn_manager._txn_partitions.update(TopicPartition(*tp) for tp in left_out)


ledger.Producer = Producer  # type: ignore[misc]
cli.main()

"""The two Faust tables: restored by Faust from their changelogs, written by the transactions alone.

The law here: a partition's rows are taken over from the changelog as a whole, and while this worker owns the
partition, nobody else may have written to it. Anything that contradicts this ends the process; the next start
restores the truth.
"""

from collections.abc import Callable, Iterable
from typing import Any

import faust
from faust.stores import STORES
from faust.stores import base as stores
from faust.types import TP

from callfunnel.agents import failpoints
from callfunnel.agents.errors import TakenOver
from callfunnel.agents.kafka.microbatch import MicroBatch
from callfunnel.agents.kafka.transport import Schema
from callfunnel.streams.records import Store
from callfunnel.streams.tables import Tables

STORES.aliases["changelog"] = f"{__name__}:RestoredRows"


class RestoredRows(stores.Store):  # type: ignore[misc]
    """Raw rows by partition, as read from the changelog: what recovery and standbys fill."""

    def __post_init__(self) -> None:
        self.data: dict[bytes, bytes] = {}  # Faust asks every store for it
        self._rows: dict[int, Store] = {}
        self._copies: dict[TP, range] = {}
        self._owned: set[int] = set()

    def persisted_offset(self, tp: TP) -> int | None:
        """The last changelog offset that the copy on this worker contains."""
        copy = self._copies.get(tp)
        return None if copy is None else copy.stop - 1

    def copy(self, tp: TP) -> range:
        """The changelog offsets that the copy on this worker contains."""
        return self._copies.get(tp, range(0))

    def apply_changelog_batch(self, batch: Iterable[Any], to_key: Any, to_value: Any) -> None:
        try:
            for event in batch:
                self._apply(event.message.tp, event.value)
                failpoints.hit("restored")
        except BaseException as error:  # Faust's recovery would log it and go on with rows missing
            self.table.fail(error)
            raise

    def _apply(self, tp: TP, batch: MicroBatch) -> None:
        copy = self._copies.get(tp, range(batch.start, batch.start))
        if batch.start > copy.stop:
            # Faust clears its queues between recovery and standby reading: forget the copy, it is read again.
            self.forget(tp.partition)
            return
        records = batch.changes(self.table.tables_type.records_type).since(copy.stop)
        if tp.partition in self._owned and len(records):
            raise TakenOver(
                f"another worker wrote to {tp.topic}/{tp.partition} while this one held it: start again"
            )
        self._of(tp.partition).put(records)
        self._copies[tp] = range(copy.start, max(copy.stop, batch.end))

    def row(self, partition: int, key: bytes) -> bytes | None:
        """A row of a partition that was not taken yet."""
        return self._of(partition).get(key)

    def take(self, partition: int) -> Store:
        """Hand the partition's rows over to its new owner in this process."""
        self._owned.add(partition)
        rows = self._of(partition)
        del self._rows[partition]
        return rows

    def _of(self, partition: int) -> Store:
        return self._rows.setdefault(partition, self.table.tables_type.store_type())

    def wrote(self, partition: int, offset: int) -> None:
        """This worker itself has written the changelog of an owned partition up to `offset`."""
        tp = TP(self.table.changelog_topic_name, partition)
        self._copies[tp] = range(self.copy(tp).start, offset + 1)

    def forget(self, partition: int) -> None:
        self._owned.discard(partition)
        self._rows.pop(partition, None)
        self._copies.pop(TP(self.table.changelog_topic_name, partition), None)

    async def on_rebalance(
        self, assigned: set[TP], revoked: set[TP], newly: set[TP], generation_id: int = 0
    ) -> None:
        name = self.table.changelog_topic_name
        for tp in revoked:
            if tp.topic == name:
                self.forget(tp.partition)
        actives = {tp.partition for tp in self.app.assignor.assigned_actives() if tp.topic == name}
        for partition in self._owned - actives:  # from active to standby on this worker
            self.forget(partition)

    async def on_recovery_completed(self, active_tps: set[TP], standby_tps: set[TP]) -> None:
        pass

    def reset_state(self) -> None:
        self.__post_init__()

    async def backup_partition(self, *args: Any, **options: Any) -> None:
        raise NotImplementedError("the changelog is the backup")

    def restore_backup(self, *args: Any, **options: Any) -> None:
        raise NotImplementedError("the changelog is the backup")


class ChangelogTable(faust.Table):  # type: ignore[misc]
    """A Faust table whose rows are restored by partition and written in transactions, never by assignment."""

    def __init__(
        self,
        app: faust.App,
        *,
        name: str,
        partitions: int,
        tables_type: type[Tables],
        fail: Callable[[BaseException], None],
    ) -> None:
        self.tables_type = tables_type
        self.fail = fail
        super().__init__(
            app,
            name=name,
            partitions=partitions,
            key_type=bytes,
            value_type=bytes,
            schema=Schema(key_type=bytes, value_type=bytes, key_serializer="raw", value_serializer="raw"),
            recovery_buffer_size=4,  # micro-batches, not rows; 1 is a special case in Faust's recovery
        )

    def _new_store(self) -> Any:
        # `store="changelog://"` would be ignored: to Faust, a URL without a host is false.
        return self._new_store_by_url("changelog://")

    @property
    def rows(self) -> RestoredRows:
        store: RestoredRows = self.data
        return store

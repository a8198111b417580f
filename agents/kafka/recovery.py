"""Faust's recovery, with the source position taken from the recovered tables.

Faust 0.15.3 makes source partitions fetchable before it clears the streams' queues, so that a batch fetched
in between is lost; it lets a recovery that was overtaken resume the flow; and it resumes from the group's
committed offset, which says nothing about the tables. Here the order is: tables complete, take the partitions
over, seek to where the tables end, clear the queues, and only then fetch.
"""

import asyncio
from typing import Any

from faust.tables import manager, recovery

from callfunnel.agents import failpoints, memory


class Recovery(recovery.Recovery):  # type: ignore[misc]
    async def on_rebalance(
        self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0
    ) -> None:
        # A recovery that is overtaken may have resumed the flow. What that brings after the next one has
        # sought its place would be cleared away with the queues, and be waited for in vain.
        self.app.consumer.stop_flow()
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)

    async def on_recovery_completed(self, generation_id: int = 0) -> None:
        app, consumer = self.app, self.app.consumer
        timeout = app.conf.broker_request_timeout
        await app.on_rebalance_complete.send()
        self._set_recovery_ended()
        await asyncio.gather(
            *[
                table.on_recovery_completed(self.actives_for_table[table], self.standbys_for_table[table])
                for table in self.tables.values()
            ]
        )
        assignment = consumer.assignment()
        if app.consumer_generation_id != generation_id:
            self.log.info("The group is rebalancing again")
            return
        source = {tp for tp in assignment if not self._is_changelog_tp(tp)}
        if assignment:
            await self._wait(consumer.perform_seek(), timeout=timeout)
            positions = await app.ingest.take_over(source, generation_id)
            if positions is None:
                self.log.info("The group has rebalanced meanwhile")
                return
            if positions:
                await self._wait(consumer.seek_wait(positions), timeout=timeout)
        self.completed.set()
        app.flow_control.resume()  # clears the streams' queues: nothing of the source can be in them yet
        consumer.resume_partitions(source - app.ingest.stopped())
        consumer.resume_flow()
        await app._fetcher.maybe_start()
        self.tables.on_actives_ready()
        if not app.assignor.assigned_standbys():
            self.tables.on_standbys_ready()
        app.on_rebalance_end()
        memory.give_back()
        app.ingest.ready(source)


class TableManager(manager.TableManager):  # type: ignore[misc]
    _recovery: Recovery | None

    @property
    def recovery(self) -> Recovery:
        if self._recovery is None:
            self._recovery = Recovery(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    def on_partitions_revoked(self, revoked: Any) -> None:
        failpoints.hit("revoked")
        super().on_partitions_revoked(revoked)

    async def on_rebalance(
        self, assigned: Any, revoked: Any, newly_assigned: Any, generation_id: int = 0
    ) -> None:
        # Before recovery asks where the changelogs end: after this, no former owner can append to them.
        await self.app.ingest.fence(assigned)
        # What recovery still had in hand when it was interrupted: later, it would begin a copy in the middle.
        self.recovery.flush_buffers()
        await super().on_rebalance(assigned, revoked, newly_assigned, generation_id)

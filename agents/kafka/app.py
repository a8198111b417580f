"""The Faust app, and what its parts and the engine ask of each other.

Faust calls the engine where partitions come and go (`Owner`); the engine asks Faust for the group and its
records (`Group`). Neither knows more of the other.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Protocol

import faust
from faust.sensors.monitor import Monitor
from faust.types import TP, EventT
from mode import Service

from callfunnel.agents.kafka.answers import Answers
from callfunnel.agents.kafka.tables import ChangelogTable
from callfunnel.streams.tables import Tables


class Owner(Protocol):
    """What the partitions of this worker belong to."""

    async def fence(self, assigned: Iterable[TP]) -> None:
        """Before recovery reads the changelogs of what is assigned: from then on, nobody else writes them."""

    async def take_over(self, source: Iterable[TP], generation: int) -> Mapping[TP, int] | None:
        """After recovery: where to read on in each partition; None where the group is further than that."""

    def ready(self, source: Collection[TP]) -> None:
        """The partitions are read from now on."""

    def stopped(self) -> Collection[TP]:
        """Those among them that stand still until a person lets them go on."""

    def reads_on(self, partition: int) -> None:
        """Bytes of a large record of the source have come, and no record yet."""


class Consumer(Protocol):
    """The consumer of a worker, as `agents.kafka.transport` makes it. An offset is the next record's."""

    def drop(self, event: EventT) -> None: ...
    def is_damaged(self, tp: TP) -> bool: ...
    def stable_end(self, tp: TP) -> int | None: ...
    def topic_partitions(self, topic: str) -> int | None: ...
    def pause_partitions(self, tps: Iterable[TP]) -> None: ...
    def resume_partitions(self, tps: Iterable[TP]) -> None: ...
    async def seek(self, tp: TP, offset: int | None) -> None: ...
    async def earliest_offsets(self, *tps: TP) -> Mapping[TP, int]: ...
    async def highwaters(self, *tps: TP) -> Mapping[TP, int]: ...


class Group(Protocol):
    """This worker's share of the consumer group."""

    answers: Answers
    funnel_table: ChangelogTable
    leads_table: ChangelogTable

    @property
    def consumer(self) -> Consumer: ...

    @property
    def consumer_generation_id(self) -> int: ...


class _Monitor(Monitor):  # type: ignore[misc]
    """Without Faust's rates, which nobody reads, and which it works out every second."""

    @Service.task  # type: ignore[untyped-decorator]
    async def _sampler(self) -> None:
        pass


class App(faust.App):  # type: ignore[misc]
    """A `Group`, with what its recovery, its consumer and its tables need of the worker."""

    ingest: Owner

    def __init__(
        self,
        app_id: str,
        *,
        source_topic: str,
        partitions: int,
        tables_type: type[Tables],
        answers: Answers,
        **options: Any,
    ) -> None:
        """`partitions` is the number of them that the source has, `tables_type` the kind of their tables."""
        super().__init__(
            app_id,
            TableManager="callfunnel.agents.kafka.recovery:TableManager",
            Monitor=_Monitor,
            **options,
        )
        self.source_topic = source_topic
        self.answers = answers
        self.funnel_table, self.leads_table = (
            self.tables.add(
                ChangelogTable(
                    self, name=name, partitions=partitions, tables_type=tables_type, fail=self.fail
                )
            )
            for name in ("funnel", "leads")
        )

    def fail(self, error: BaseException) -> None:
        """What the parts call when they cannot go on."""
        raise error

    def _on_rebalance_when_stopped(self) -> None:
        """Does nothing. Faust closes the consumer here, during its last commit and from the wrong event loop.
        The worker leaves the group when it stops its consumer."""

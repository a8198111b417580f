"""What the tables of one partition are: the log of each lead, and the funnel rows that follow from the logs.

There are two kinds, which hold and write the same: `streams.by_definition` folds by the definition itself, in
Python; `streams.by_core` by the core, which was written without a look at the definition and is fast.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self

from msgspec import Struct

from callfunnel.schemas.codec import ARCHIVED, CROWDED, Decoder, Rejected, moment
from callfunnel.streams.fold import Fold
from callfunnel.streams.funnel import Change
from callfunnel.streams.panes import Bounds
from callfunnel.streams.partitioning import Homes
from callfunnel.streams.records import Records, Store
from callfunnel.streams.rows import Columns, RowKey

MOST_EVENTS = 1_000
"""Of one lead, unless a setting says another number. An id with more stands for many leads."""


Archived = tuple[str, tuple[str, ...], Columns]
"""A rollup, values of its dimensions, and how much more archived leads have in each column."""


class Effects(Struct):
    """What a batch asks of the outside world."""

    funnel: list[Change]
    leads: list[Change]
    rejected: list[tuple[int, Rejected]]
    """(index in the batch, why)"""
    foreign: list[tuple[int, int]]
    """(index in the batch, home partition) of events whose lead lives on another partition."""
    watermark_ms: int
    """The largest event time so far."""
    duplicates: int = 0
    conflicting: int = 0
    """Events that were taken in and contradict another one of the same id."""
    late: int = 0
    newest_ms: int = -1
    """The largest event time of the events that were taken in; -1 where there are none."""
    horizon_ms: int = 0
    """Where what is archived ends, after the batch."""
    archived: list[Archived] = []
    """What leads add to the time since the beginning that were archived."""

    def extend(self, later: Self) -> None:
        """These effects, and behind them those of what came after."""
        self.funnel += later.funnel
        self.leads += later.leads
        self.rejected += later.rejected
        self.foreign += later.foreign
        self.duplicates += later.duplicates
        self.conflicting += later.conflicting
        self.late += later.late
        self.watermark_ms = later.watermark_ms
        self.newest_ms = max(self.newest_ms, later.newest_ms)
        self.archived += later.archived


class Tables(Protocol):
    """The state of one partition. What `decode` gives is for the other methods alone."""

    records_type: ClassVar[type[Records]]
    """The records of changelogs, where these tables are kept."""
    store_type: ClassVar[type[Store]]
    """What they are restored from."""
    murmur2_of_all: Homes

    def __init__(self, fold: Fold, decoder: Decoder, generation: int = 0) -> None: ...

    def restore(self, funnel: Store, leads: Store) -> None:
        """Take over the rows of the changelogs, without their positions; both stores are consumed."""

    def derive(self, leads: Store, most: int, bounds: Bounds) -> None:
        """Take up to so many logs out of `leads`, hold them, and count all that they add."""

    def records(self) -> list[tuple[bytes, bytes]]:
        """The funnel rows as their changelog holds them."""

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], timestamps: Sequence[int]
    ) -> Any:
        """What each record of a batch says."""

    def refuse(self, verdicts: Any, indices: Iterable[int], why: Rejected) -> None:
        """Refuse these records, whatever they say; a record that is refused already keeps its reason."""

    def new_leads(self, verdicts: Any, keys: Sequence[bytes | None]) -> set[bytes]:
        """The leads of a batch of which nothing is known."""

    def first_at(
        self,
        verdicts: Any,
        keys: Sequence[bytes | None],
        away: Mapping[bytes, int],
        at_ms: int,
        start: int,
    ) -> int | None:
        """The index, from `start` on, of the first event at this moment or later that is not `away`."""

    def add(
        self,
        verdicts: Any,
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        away: Mapping[bytes, int],
        bounds: Bounds,
        part: range,
    ) -> Effects:
        """Take in a part of a batch: what was decoded, the records' keys and times in ms.

        `away` are new leads that are at home on another partition; their events stay out. `bounds` are those
        before the part. Raises ValueError where a lead's record is none.
        """

    def archive(self, place: int, most: int, bounds: Bounds) -> tuple[Effects, int | None]:
        """Look at up to so many leads, and archive those of which nothing happened since the horizon.

        `place` is where to begin: 0, or what this gave before; it gives None at the end. Leads that come or
        go meanwhile may be passed over.
        """

    def rows(self) -> dict[RowKey, Columns]:
        """Every funnel row. For tests and comparisons: the tables of a worker are large."""

    def logs(self) -> dict[bytes, bytes]:
        """Every lead's record. For tests and comparisons, too."""

    def sizes(self) -> tuple[int, int]:
        """How many funnel rows and how many leads there are."""


def crowded(limit: int) -> Rejected:
    return Rejected(
        CROWDED,
        f"`$.lead_id` names a lead that has {limit} events already, the most one lead may have: "
        "is it a placeholder for many leads?",
    )


def archived(horizon_ms: int) -> Rejected:
    return Rejected(
        ARCHIVED,
        f"`$.occurred_at` is before {moment(horizon_ms)}, and what happened before then is archived",
    )

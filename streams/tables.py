"""What the tables of one partition are: the log of each lead, and the funnel rows that follow from the logs.

There are two kinds, which hold and write the same: `streams.by_definition` folds by the definition itself, in
Python; `streams.by_core` by the core, which was written without a look at the definition and is fast.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from msgspec import Struct

from callfunnel.schemas.codec import CROWDED, Decoder, Rejected
from callfunnel.streams.fold import Fold
from callfunnel.streams.funnel import Change
from callfunnel.streams.partitioning import Homes
from callfunnel.streams.rows import Columns, RowKey

MOST_EVENTS = 1_000
"""Of one lead, unless a setting says another number. An id with more stands for many leads."""


class Effects(Struct):
    """What a batch asks of the outside world."""

    funnel: list[Change]
    leads: list[Change]
    rejected: list[tuple[int, Rejected]]
    """(index in the batch, why)"""
    foreign: list[tuple[int, int]]
    """(index in the batch, home partition) of events whose lead lives on another partition."""
    duplicates: int
    late: int
    watermark_ms: int
    """The largest event time so far."""
    newest_ms: int = -1
    """The largest event time of the events that were taken in; -1 where there are none."""


class Tables(Protocol):
    """The state of one partition. What `decode` gives is for the other methods alone."""

    murmur2_of_all: Homes

    def __init__(self, fold: Fold, decoder: Decoder, generation: int = 0) -> None: ...

    def restore(self, funnel: dict[bytes, bytes], leads: dict[bytes, bytes]) -> None:
        """Take over the rows of the changelogs, without their positions; both dicts are consumed."""

    def derive(self, leads: dict[bytes, bytes], most: int, watermark_ms: int) -> None:
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

    def add(
        self,
        verdicts: Any,
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        away: Mapping[bytes, int],
        watermark_ms: int,
    ) -> Effects:
        """Take in a batch: what was decoded, the records' keys and times in ms.

        `away` are new leads that are at home on another partition; their events stay out. `watermark_ms` is
        the largest event time before. Raises ValueError where a lead's record is none.
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

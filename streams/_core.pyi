"""The compiled core of the tables (`streams/core/`); `streams.tables` says what they mean."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import final

from callfunnel.streams import records
from callfunnel.streams.records import Batch

SOURCES: str
"""`agents.choice.digest` when this was built; empty where nobody said it."""

Entry = tuple[str, int, int, int, int | None, tuple[str | None, ...], tuple[int | str | None, ...]]
"""Lead id, mark, rank, moment in ms, call; campaign, source, location, team, agent; the type's own fields."""

Bounds = tuple[int, int]
"""Watermark and horizon, in Unix milliseconds."""

Archived = list[tuple[int, list[str], list[tuple[int, int]]]]
"""The place of a rollup, values of its dimensions, and how much more of each column's id."""

Effects = tuple[
    list[tuple[bytes, bytes | None]],
    list[tuple[bytes, bytes | None]],
    list[int],
    list[int],
    list[tuple[int, int]],
    tuple[int, int, int],
    int,
    Archived,
]
"""Changed rows, changed leads, crowded, older than the horizon, foreign with their homes, how many are
duplicates, conflicting and late, newest event in ms, what archived leads add."""

def murmur2(keys: Iterable[bytes]) -> dict[bytes, int]:
    """Kafka's hash of each key, with the sign bit cleared."""

@final
class Records:
    """Records of one partition of a changelog, in the order of their offsets (`streams.records`)."""

    @classmethod
    def of(
        cls, offsets: Sequence[int], keys: Sequence[bytes | None], values: Sequence[bytes | None]
    ) -> Records: ...
    @classmethod
    def read(
        cls, data: bytes, batches: Sequence[Batch], position: int, most_records: int, most_bytes: int
    ) -> tuple[Records, int]: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[tuple[bytes | None, bytes | None]]: ...
    def since(self, offset: int) -> Records: ...
    def split(self, count: int) -> tuple[Records, Records]: ...
    def up_to(self, key: bytes) -> int: ...
    def newest(self, key: bytes) -> bytes | None: ...
    def has_key_with(self, first: int, besides: bytes) -> bool:
        """Whether a key begins with this byte, other than this one."""

@final
class Store:
    """The newest value of each key (`streams.records`)."""

    def put(self, records: records.Records) -> None:
        """Takes those of the core alone."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[bytes]: ...
    def __contains__(self, key: bytes) -> bool: ...
    def get(self, key: bytes) -> bytes | None: ...
    def pop(self, key: bytes) -> bytes: ...

@final
class Verdicts:
    """What the records of a batch say: an event each, or that it is none."""

    def __len__(self) -> int: ...
    def odd(self) -> list[int]:
        """The indices of the records that Python has to look at."""

    def first_at(self, at_ms: int, start: int, away: dict[bytes, int]) -> int | None:
        """The first event from `start` on, at this moment or later, of a lead that is not `away`."""

    def tell(self, i: int, entry: Entry) -> None:
        """What Python made of an odd record."""

    def refuse(self, i: int) -> None:
        """The record is no event, or is one no more."""

@final
class Tables:
    """The tables of one partition."""

    def __init__(
        self,
        *,
        types: list[tuple[str, list[tuple[str, str, str, list[str], str, bool]]]],
        columns: dict[str, int],
        rollups: list[tuple[int, list[str], bool, int]],
        resolutions: list[tuple[int, str, int, int]],
        activity: dict[str, str],
        retracted: dict[str, str],
        histograms: list[tuple[str, list[int], list[str], str]],
        day_of: Callable[[int], int],
        hangup_ms: int,
        late_ms: int,
        lead_events: int,
        max_bytes: int,
        generation: int,
    ) -> None:
        """Raises ValueError for a declaration that the core does not fit."""

    def restore(self, rows: Store, leads: Store) -> None:
        """Takes everything out of both, so that the memory is not held twice."""

    def derive(self, leads: Store, most: int, bounds: Bounds) -> None:
        """Takes up to so many logs out of `leads`, holds them, and counts all that they add."""

    def read(
        self, values: list[bytes | None], keys: list[bytes | None], earliest_ms: int, latest_ms: int
    ) -> Verdicts:
        """What the records say, as far as they are ordinary events within these times."""

    def new_leads(self, verdicts: Verdicts) -> set[bytes]:
        """The ids of the batch's leads of which nothing is held."""

    def archive(
        self, place: int, most: int, bounds: Bounds
    ) -> tuple[list[tuple[bytes, bytes | None]], list[bytes], int | None, Archived]:
        """Rows, the ids of leads that are held no more, where to go on, and what those leads add."""

    def add(
        self,
        verdicts: Verdicts,
        timestamps: list[int],
        away: dict[bytes, int],
        bounds: Bounds,
        start: int,
        stop: int,
    ) -> Effects:
        """Events of leads that are `away` are foreign. Raises ValueError for a corrupt record of a lead."""

    def rows(self) -> list[tuple[bytes, bytes]]: ...
    def leads(self) -> list[tuple[bytes, bytes]]: ...
    def row_count(self) -> int: ...
    def lead_count(self) -> int: ...

Summed = tuple[int, list[int]]
"""The ids of a rollup and of the resolutions whose rows are summed, -1 for base rows."""

@final
class Sums:
    """The rows of all partitions as a view holds them, and what they add up to over spans of panes."""

    def __init__(self, rollups: dict[int, int], names: dict[int, str]) -> None:
        """The numbers of dimensions of the rollups, and the names of the columns, by their ids."""

    def __len__(self) -> int: ...
    def apply(self, partition: int, records: Records, besides: bytes) -> None:
        """What has the key `besides` is no row. Raises ValueError with the reason and the key of another that
        is none."""

    def show(self, partition: int, generation: int) -> None: ...
    def total(
        self, name: str, summed: Summed, start: int, end: int, depth: int
    ) -> dict[tuple[str, ...], dict[str, int]]: ...
    def figures(
        self, name: str, summed: Summed, start: int, end: int, figures: list[list[int]], depth: int
    ) -> dict[tuple[str, ...], tuple[int, ...]]: ...
    def seen(self, name: str, summed: Summed, start: int, end: int) -> set[tuple[str, ...]]: ...
    def first(
        self, summed: Summed, column: int, wanted: set[tuple[str, ...]]
    ) -> dict[tuple[str, ...], int]: ...

"""Records of a changelog as they come, and what is left of them: the newest value of each key.

There are two kinds of both, which hold the same: those here, in Python, and those of the core, which also
reads most of what a broker sends.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, Self

Pairs = Iterable[tuple[bytes | None, bytes | None]]
"""Keys and values, in the order in which a changelog has them; None deletes, or there is no key."""

Batch = tuple[int, int]
"""Where a record batch begins and ends in what a broker sent, in bytes."""


class Records(Protocol):
    """Records of one partition, in the order of their offsets. The value of one that deletes is None."""

    @classmethod
    def of(
        cls, offsets: Sequence[int], keys: Sequence[bytes | None], values: Sequence[bytes | None]
    ) -> Self: ...

    @classmethod
    def read(
        cls, data: bytes, batches: Sequence[Batch], position: int, most_records: int, most_bytes: int
    ) -> tuple[Self, int]:
        """The records from offset `position` on of the first of these batches, and of how many batches.

        It ends behind the batch with which there are so many records or bytes of keys and values, and before
        the first batch that is to be read in another way (`agents.kafka.batches`).
        """

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[tuple[bytes | None, bytes | None]]:
        """Key and value of each."""

    def since(self, offset: int) -> Self:
        """Those from this offset on."""

    def split(self, count: int) -> tuple[Self, Self]:
        """The first so many, and the others."""

    def up_to(self, key: bytes) -> int:
        """How many there are up to the last one with this key; 0 without one."""

    def newest(self, key: bytes) -> bytes | None:
        """The last value of this key; None also where there is none."""


class Store(Protocol):
    """The newest value of each key; one that was deleted is not there."""

    def put(self, records: Records) -> None:
        """Take them in their order; those without a key are passed over."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[bytes]:
        """The keys; none may come or go meanwhile."""

    def __contains__(self, key: bytes) -> bool: ...

    def get(self, key: bytes) -> bytes | None: ...

    def pop(self, key: bytes) -> bytes:
        """Its value, which is held no more. Raises KeyError."""


class PlainRecords(Records):
    """In Python. What a broker sends, it leaves to be read in the other way."""

    def __init__(self, records: Sequence[tuple[int, bytes | None, bytes | None]]) -> None:
        self._records = records
        """Offset, key and value of each."""

    @classmethod
    def of(cls, offsets: Sequence[int], keys: Sequence[bytes | None], values: Sequence[bytes | None]) -> Self:
        return cls(list(zip(offsets, keys, values, strict=True)))

    @classmethod
    def read(
        cls, data: bytes, batches: Sequence[Batch], position: int, most_records: int, most_bytes: int
    ) -> tuple[Self, int]:
        return cls([]), 0

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[tuple[bytes | None, bytes | None]]:
        return ((key, value) for _, key, value in self._records)

    def since(self, offset: int) -> Self:
        return type(self)([record for record in self._records if record[0] >= offset])

    def split(self, count: int) -> tuple[Self, Self]:
        return type(self)(self._records[:count]), type(self)(self._records[count:])

    def up_to(self, key: bytes) -> int:
        records = self._records
        return next((n for n in range(len(records), 0, -1) if records[n - 1][1] == key), 0)

    def newest(self, key: bytes) -> bytes | None:
        return next((value for _, its, value in reversed(self._records) if its == key), None)


class PlainStore(dict[bytes, bytes], Store):
    """A dict."""

    def put(self, records: Records) -> None:
        for key, value in records:
            if key is None:
                continue
            if value is None:
                self.pop(key, None)
            else:
                self[key] = value

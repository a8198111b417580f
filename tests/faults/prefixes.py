"""What the pages scraped during a run must say: the totals of the first records of each partition.

A page says itself how many of them it counts (`callfunnel_source_records_total`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from callfunnel.schemas.events import Event as Accepted
from callfunnel.streams.log import Entry, entry_of
from faults import stream
from faults.stream import Counters, Sent
from faults.watch import Prefix


def expected(
    prefixes: Iterable[Prefix], places: Mapping[int, Sequence[int]], sent: Sequence[Sent]
) -> Mapping[Prefix, Counters]:
    """What a page of each prefix must say; `places` are those of the records of a partition in `sent`."""
    prefixes = list(prefixes)
    wanted = defaultdict[int, set[int]](set)
    for prefix in prefixes:
        for partition, n in prefix:
            wanted[partition].add(n)
    of_partition = {
        (partition, n): counters
        for partition, lengths in wanted.items()
        for n, counters in _growing([sent[place] for place in places[partition]], lengths).items()
    }
    return {
        prefix: dict(sum((of_partition[part] for part in prefix), Counter[tuple[str, str, str]]()))
        for prefix in prefixes
    }


def _growing(records: Sequence[Sent], lengths: set[int]) -> dict[int, Counter[tuple[str, str, str]]]:
    """After so many of the records, how many events of each kind."""
    seen = set[tuple[str, Entry]]()
    counters, found = Counter[tuple[str, str, str]](), {}
    for n, record in enumerate(records, start=1):
        if record.reason is None:
            event = msgspec.convert(record.event, Accepted)
            entry = event.lead_id, entry_of(event)
            if entry not in seen:
                seen.add(entry)
                counters.update(stream.counters([event]))
        if n in lengths:
            found[n] = counters.copy()
    return found

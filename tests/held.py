"""What is held of changelogs, made of dicts: what a partition takes over."""

from collections.abc import Mapping

from callfunnel.streams.engine import Partition
from callfunnel.streams.records import Store
from callfunnel.streams.tables import Tables


def store(kind: type[Tables], rows: Mapping[bytes, bytes]) -> Store:
    """A store for tables of this kind, with these rows."""
    held = kind.store_type()
    held.put(kind.records_type.of(range(len(rows)), list(rows), list(rows.values())))
    return held


def restore(state: Partition, funnel: Mapping[bytes, bytes], leads: Mapping[bytes, bytes]) -> None:
    """Let the partition take over these rows of the two changelogs."""
    kind = type(state.tables)
    state.restore(store(kind, funnel), store(kind, leads))

"""Tables that fold by the definition, lead by lead: what is used where the core is not built."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import cast
from zoneinfo import ZoneInfo

from callfunnel.schemas.codec import Decoder, Rejected
from callfunnel.schemas.events import Envelope
from callfunnel.streams.definition import Addition, activity, additions, facts
from callfunnel.streams.fold import Fold
from callfunnel.streams.funnel import Cell, Funnel
from callfunnel.streams.log import Entry, entry_of, in_force, joined, pack, unpack
from callfunnel.streams.panes import Bounds
from callfunnel.streams.partitioning import murmur2_of_all
from callfunnel.streams.records import PlainRecords, PlainStore, Store
from callfunnel.streams.rows import Columns, RowKey, whole
from callfunnel.streams.tables import Effects, Tables, archived, crowded

Verdict = Envelope | Rejected
Sums = defaultdict[Cell, int]


class DefinedTables(Tables):
    """Those of the definition."""

    records_type = PlainRecords
    store_type = PlainStore
    murmur2_of_all = staticmethod(murmur2_of_all)

    def __init__(self, fold: Fold, decoder: Decoder, generation: int = 0) -> None:
        self._logs: dict[bytes, bytes] = {}
        self._funnel = Funnel(fold.resolutions, ZoneInfo(fold.timezone), generation)
        self._fold = fold
        self._decoder = decoder

    def restore(self, funnel: Store, leads: Store) -> None:
        self._logs = cast(PlainStore, leads)
        self._funnel.restore(cast(PlainStore, funnel))

    def derive(self, leads: Store, most: int, bounds: Bounds) -> None:
        sums = Sums(int)
        for lead_id in list(islice(leads, most)):
            record = self._logs[lead_id] = leads.pop(lead_id)
            _count(sums, additions(unpack(record), self._fold.hangup_ms))
        self._funnel.add(sums, bounds)

    def records(self) -> list[tuple[bytes, bytes]]:
        return self._funnel.records()

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], timestamps: Sequence[int]
    ) -> Sequence[Verdict]:
        return self._decoder.decode_all(values, keys, timestamps)

    def refuse(self, verdicts: Sequence[Verdict], indices: Iterable[int], why: Rejected) -> None:
        for i in indices:
            if not isinstance(verdicts[i], Rejected):
                verdicts[i] = why  # type: ignore[index]

    def new_leads(self, verdicts: Sequence[Verdict], keys: Sequence[bytes | None]) -> set[bytes]:
        ids = {
            _lead_id(event, keys[i]) for i, event in enumerate(verdicts) if not isinstance(event, Rejected)
        }
        return ids - self._logs.keys()

    def first_at(
        self,
        verdicts: Sequence[Verdict],
        keys: Sequence[bytes | None],
        away: Mapping[bytes, int],
        at_ms: int,
        start: int,
    ) -> int | None:
        for i in range(start, len(verdicts)):
            event = verdicts[i]
            if isinstance(event, Rejected) or event.at_ms < at_ms:
                continue
            if _lead_id(event, keys[i]) not in away:
                return i
        return None

    def add(
        self,
        verdicts: Sequence[Verdict],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        away: Mapping[bytes, int],
        bounds: Bounds,
        part: range,
    ) -> Effects:
        fold = self._fold
        before: dict[bytes, list[Entry]] = {}
        after: dict[bytes, set[Entry]] = {}
        past: list[list[Entry]] = []
        effects = _none(bounds)
        newest_ms = -1

        for i in part:
            event = verdicts[i]
            if isinstance(event, Rejected):
                effects.rejected.append((i, event))
                continue
            lead_id = _lead_id(event, keys[i])
            if lead_id in away:
                effects.foreign.append((i, away[lead_id]))
                continue
            entry = entry_of(event)
            if entry.at_ms < bounds.horizon_ms:
                effects.rejected.append((i, archived(bounds.horizon_ms)))
                continue
            if lead_id not in after:
                record = self._logs.get(lead_id)
                log = unpack(record) if record is not None else []
                if log and _is_past(log, bounds):
                    past.append(log)
                    log = []
                before[lead_id], after[lead_id] = log, set(log)
            entries = after[lead_id]
            if entry in entries:
                effects.duplicates += 1
            elif len(entries) >= fold.lead_events:
                effects.rejected.append((i, crowded(fold.lead_events)))
            else:
                entries.add(entry)
                newest_ms = max(newest_ms, entry.at_ms)
                effects.late += timestamps[i] - entry.at_ms > fold.late_ms

        sums = Sums(int)
        self._archive(past, sums, effects)
        for lead_id, entries in after.items():
            old = before[lead_id]
            if len(entries) == len(old):
                continue
            new = joined((), entries)
            effects.conflicting += _conflicting(new) - _conflicting(old)
            _count(sums, activity(entries.difference(old)))
            latter = list(facts(new, fold.hangup_ms))
            former = list(facts(old, fold.hangup_ms)) if old else []
            alike = _alike(latter, former)
            _count(sums, latter[alike:])
            _count(sums, former[alike:], -1)
            record = self._logs[lead_id] = pack(new)
            effects.leads.append((lead_id, record))

        effects.newest_ms = newest_ms
        effects.watermark_ms = max(bounds.watermark_ms, newest_ms)
        effects.funnel = self._funnel.add(sums, Bounds(effects.watermark_ms, bounds.horizon_ms))
        return effects

    def archive(self, place: int, most: int, bounds: Bounds) -> tuple[Effects, int | None]:
        effects, sums = _none(bounds), Sums(int)
        looked_at = list(islice(self._logs, place, place + most))
        logs = {lead_id: unpack(self._logs[lead_id]) for lead_id in looked_at}
        past = {lead_id: log for lead_id, log in logs.items() if _is_past(log, bounds)}
        self._archive(past.values(), sums, effects)
        for lead_id in past:
            del self._logs[lead_id]
            effects.leads.append((lead_id, None))
        effects.funnel = self._funnel.add(sums, bounds)
        return effects, None if len(looked_at) < most else place + most - len(past)

    def _archive(self, logs: Iterable[list[Entry]], sums: Sums, effects: Effects) -> None:
        """Take what these logs add out of the rows; what they add for ever goes into the effects."""
        kept = defaultdict[tuple[str, tuple[str, ...]], Counter[str]](Counter)
        for log in logs:
            for addition in additions(log, self._fold.hangup_ms):
                _count(sums, (addition,), -1)
                if addition.rollup.of_all_time:
                    kept[addition.rollup.name, addition.dimensions][addition.column] += addition.n
        effects.archived += [(*group, dict(columns)) for group, columns in kept.items()]

    def rows(self) -> dict[RowKey, Columns]:
        return whole(self._funnel.rows(), ZoneInfo(self._fold.timezone))

    def logs(self) -> dict[bytes, bytes]:
        return self._logs

    def sizes(self) -> tuple[int, int]:
        return len(self._funnel), len(self._logs)


def _lead_id(event: Envelope, key: bytes | None) -> bytes:
    return key or event.lead_id.encode()


def _is_past(log: Sequence[Entry], bounds: Bounds) -> bool:
    """Whether nothing has happened to the lead since the horizon."""
    return log[-1].at_ms < bounds.horizon_ms


def _conflicting(log: Sequence[Entry]) -> int:
    """How many entries contradict another one of the same event."""
    return len(log) - len(in_force(log))


def _none(bounds: Bounds) -> Effects:
    return Effects([], [], [], [], bounds.watermark_ms)


def _alike(some: Sequence[Addition], others: Sequence[Addition]) -> int:
    """How many at the start of both are the same."""
    for place, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return place
    return min(len(some), len(others))


def _count(sums: Sums, additions: Iterable[Addition], times: int = 1) -> None:
    for at_ms, rollup, dimensions, column, n in additions:
        sums[at_ms // 60_000 * 60, rollup.name, dimensions, column] += n * times

"""Tables that fold by the definition, lead by lead: what is used where the core is not built."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from zoneinfo import ZoneInfo

from callfunnel.schemas.codec import Decoder, Rejected
from callfunnel.schemas.events import Envelope
from callfunnel.streams.definition import Addition, activity, additions, facts
from callfunnel.streams.fold import Fold
from callfunnel.streams.funnel import Cell, Change, Funnel
from callfunnel.streams.log import Entry, entry_of, in_force, joined, pack, unpack
from callfunnel.streams.partitioning import murmur2_of_all
from callfunnel.streams.rows import Columns, RowKey
from callfunnel.streams.tables import Effects, Tables, crowded

Verdict = Envelope | Rejected


class DefinedTables(Tables):
    """Those of the definition."""

    murmur2_of_all = staticmethod(murmur2_of_all)

    def __init__(self, fold: Fold, decoder: Decoder, generation: int = 0) -> None:
        self._logs: dict[bytes, bytes] = {}
        self._funnel = Funnel(fold.resolutions, ZoneInfo(fold.timezone), generation)
        self._fold = fold
        self._decoder = decoder

    def restore(self, funnel: dict[bytes, bytes], leads: dict[bytes, bytes]) -> None:
        self._logs = leads
        self._funnel.restore(funnel)

    def derive(self, leads: dict[bytes, bytes], most: int, watermark_ms: int) -> None:
        sums = Counter[Cell]()
        while leads and most > 0:
            lead_id, record = leads.popitem()
            self._logs[lead_id] = record
            _count(sums, additions(unpack(record), self._fold.hangup_ms))
            most -= 1
        self._funnel.add(sums, watermark_ms)

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
            keys[i] or event.lead_id.encode()
            for i, event in enumerate(verdicts)
            if not isinstance(event, Rejected)
        }
        return ids - self._logs.keys()

    def add(
        self,
        verdicts: Sequence[Verdict],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        away: Mapping[bytes, int],
        watermark_ms: int,
    ) -> Effects:
        fold = self._fold
        sums = Counter[Cell]()
        before: dict[bytes, list[Entry]] = {}
        after: dict[bytes, set[Entry]] = {}
        rejected: list[tuple[int, Rejected]] = []
        foreign: list[tuple[int, int]] = []
        duplicates = late = 0
        newest_ms = -1

        for i, event in enumerate(verdicts):
            if isinstance(event, Rejected):
                rejected.append((i, event))
                continue
            lead_id = keys[i] or event.lead_id.encode()
            if lead_id in away:
                foreign.append((i, away[lead_id]))
                continue
            if lead_id not in after:
                record = self._logs.get(lead_id)
                before[lead_id] = unpack(record) if record is not None else []
                after[lead_id] = set(before[lead_id])
            log, entry = after[lead_id], entry_of(event)
            if entry in log:
                duplicates += 1
            elif len(log) >= fold.lead_events:
                rejected.append((i, crowded(fold.lead_events)))
            else:
                log.add(entry)
                newest_ms = max(newest_ms, entry.at_ms)
                late += timestamps[i] - entry.at_ms > fold.late_ms

        leads: list[Change] = []
        for lead_id, entries in after.items():
            old = before[lead_id]
            if len(entries) == len(old):
                continue
            new = joined((), entries)
            _count(sums, activity(entries.difference(old)))
            latter = list(facts(in_force(new), fold.hangup_ms))
            former = list(facts(in_force(old), fold.hangup_ms))
            if latter != former:
                _count(sums, latter)
                _count(sums, former, -1)
            record = self._logs[lead_id] = pack(new)
            leads.append((lead_id, record))

        return Effects(
            funnel=self._funnel.add(sums, max(watermark_ms, newest_ms)),
            leads=leads,
            rejected=rejected,
            foreign=foreign,
            duplicates=duplicates,
            late=late,
            watermark_ms=max(watermark_ms, newest_ms),
            newest_ms=newest_ms,
        )

    def rows(self) -> dict[RowKey, Columns]:
        return self._funnel.rows()

    def logs(self) -> dict[bytes, bytes]:
        return self._logs

    def sizes(self) -> tuple[int, int]:
        return len(self._funnel), len(self._logs)


def _count(sums: Counter[Cell], additions: Iterable[Addition], times: int = 1) -> None:
    for at_ms, rollup, dimensions, column, n in additions:
        sums[at_ms // 60_000 * 60, rollup.name, dimensions, column] += n * times

"""One source partition: records in, effects out.

The law here: the state is a fold of the partition's records in offset order, with no clock, no chance and no
other partition in it. `apply` changes the state in memory and returns everything that has to become durable;
whoever calls it writes all of it, in one transaction, or ends the process.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol
from zoneinfo import ZoneInfo

from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import replace
from xxhash import xxh3_64_hexdigest

from schemas.codec import Rejected
from schemas.events import NONE, TYPES, CallEnded, Connect, Disqualified, Envelope, Lost
from schemas.rows import LEADS_POSITION_KEY, POSITION_KEY, Position, decode_position, encode_position
from streams.columns import EVENTS, EVENTS_DISQUALIFIED, EVENTS_LOST, MACHINE_ANSWERS
from streams.counts import Counts
from streams.funnel import Change, Funnel
from streams.lead import Lead, contribute, fingerprint, pack, unpack
from streams.panes import Resolution
from streams.partitioning import Homes

Verdict = Envelope | Rejected


class Decode(Protocol):
    def __call__(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], timestamps: Sequence[int]
    ) -> Sequence[Verdict]: ...


class Fold(Struct, frozen=True):
    """The settings that say what a number means: tables made under different ones must not be mixed."""

    hangup_ms: int
    late_ms: int
    """An event is late when its record is younger by more than this. Late events are counted like all."""
    lead_events: int
    """The most events one lead may have; more is a placeholder in place of a lead id."""
    timezone: str
    partitioner: str
    resolutions: tuple[Resolution, ...]
    version: int = 2
    """Raised whenever the code means something else by the same settings."""

    @property
    def id(self) -> str:
        """The fingerprint by which tables say under which settings they were made; late is not in them."""
        return xxh3_64_hexdigest(encode(replace(self, late_ms=0)))


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


class Partition:
    """The state of one source partition."""

    def __init__(
        self,
        number: int,
        fold: Fold,
        decode: Decode,
        homes: Homes | None,
    ) -> None:
        self.number = number
        self.offset: int | None = None
        """The next source offset to apply; None before the first batch was ever written."""
        self.written = Position(offset=0, watermark_ms=-1, fold=fold.id)
        """The position record as it was last made."""
        self.leads: dict[bytes, bytes] = {}
        self.funnel = Funnel(fold.resolutions, ZoneInfo(fold.timezone))
        self._fold = fold
        self._fold_id = fold.id
        self._decode = decode
        self._homes = homes

    def restore(self, funnel: dict[bytes, bytes], leads: dict[bytes, bytes]) -> None:
        """Take over the rows of the two changelogs; both dicts are consumed.

        Raises `Mismatch` when they do not belong together or were made by another fold.
        """
        positions = [
            decode_position(rows.pop(key)) if key in rows else None
            for rows, key in ((funnel, POSITION_KEY), (leads, LEADS_POSITION_KEY))
        ]
        if positions[0] != positions[1]:
            raise Mismatch(
                f"the two changelogs of partition {self.number} do not belong together: "
                f"the funnel's position is {positions[0]}, the leads' is {positions[1]}. One was deleted "
                "or restored without the other: delete both to rebuild from the source topic, or use a new "
                "app id."
            )
        if positions[0] is None:
            if funnel or leads:
                raise Mismatch(
                    f"the changelogs of partition {self.number} hold rows but no position: not ours"
                )
            return
        if positions[0].fold != self._fold_id:
            raise Mismatch(
                f"the tables of partition {self.number} were made with other settings of the fold "
                "(hang-up threshold, time zone, retention, partitioner or version): put the old settings "
                "back, or use a new app id to build new tables from the source topic."
            )
        self.written = positions[0]
        self.offset = positions[0].offset
        self.leads = leads
        self.funnel.restore(funnel)

    def apply(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        rerouted: Sequence[bool] | None,
        end: int,
    ) -> Effects:
        """Fold the records up to (not including) source offset `end`.

        `timestamps` are the records' own, in ms. `rerouted` marks records that were already sent home once:
        they are applied wherever they are.
        """
        fold = self._fold
        leads = self.leads
        counts = Counts()
        opened: dict[bytes, Lead] = {}
        changed: set[bytes] = set()
        rejected: list[tuple[int, Rejected]] = []
        foreign: list[tuple[int, int]] = []
        duplicates = late = 0
        watermark_ms = self.written.watermark_ms

        verdicts = self._decode(values, keys, timestamps)
        away = self._away(verdicts, keys)
        for i, event in enumerate(verdicts):
            if isinstance(event, Rejected):
                rejected.append((i, event))
                continue
            lead_id = keys[i] or event.lead_id.encode()
            lead = opened.get(lead_id)
            if lead is None:
                if lead_id in away and not (rerouted and rerouted[i]):
                    foreign.append((i, away[lead_id]))
                    continue
                record = leads.get(lead_id)
                lead = opened[lead_id] = Lead() if record is None else unpack(record)
            mark = fingerprint(event.event_id)
            if mark in lead.seen and lead.has_seen(mark):
                duplicates += 1
                continue
            if len(lead.seen) >= fold.lead_events * 8:
                rejected.append((i, _crowded(fold.lead_events)))
                continue
            lead.seen += mark
            at = event.occurred_at
            at_ms = at if type(at) is int else event.at_ms
            if at_ms > watermark_ms:
                watermark_ms = at_ms
            if timestamps[i] - at_ms > fold.late_ms:
                late += 1
            if lead.absorb(event, at_ms):
                changed.add(lead_id)
            kind = type(event)
            column = _ACTIVITY[kind]
            if column is None:
                continue
            if kind is Connect and event.answered_by == "machine":  # type: ignore[attr-defined]
                column = MACHINE_ANSWERS
            minute = at_ms // 60_000 * 60
            counts.campaigns[event.campaign or NONE, event.source or NONE][minute][column] += 1
            counts.teams[event.team or NONE, event.agent or NONE][minute][column] += 1
            counts.locations[event.location or NONE,][minute][column] += 1

        lead_changes: list[Change] = []
        for lead_id, lead in opened.items():
            former = leads.get(lead_id)
            if lead_id in changed:
                if former is not None:
                    contribute(unpack(former), fold.hangup_ms, -1, counts)
                contribute(lead, fold.hangup_ms, 1, counts)
            record = pack(lead)
            if record != former:
                leads[lead_id] = record
                lead_changes.append((lead_id, record))

        applied = len(values) - len(rejected) - len(foreign) - duplicates
        before = self.written
        self.offset = end
        self.written = Position(
            offset=end,
            watermark_ms=watermark_ms,
            fold=self._fold_id,
            applied=before.applied + applied,
            duplicates=before.duplicates + duplicates,
            rejected=before.rejected + len(rejected),
            rerouted=before.rerouted + len(foreign),
        )
        position = encode_position(self.written)
        return Effects(
            funnel=[*self.funnel.add(counts, watermark_ms), (POSITION_KEY, position)],
            leads=[*lead_changes, (LEADS_POSITION_KEY, position)],
            rejected=rejected,
            foreign=foreign,
            duplicates=duplicates,
            late=late,
        )

    def _away(self, verdicts: Iterable[Verdict], keys: Sequence[bytes | None]) -> Mapping[bytes, int]:
        """The leads that are new here and at home elsewhere, and where."""
        if self._homes is None:
            return {}
        ids = {
            keys[i] or event.lead_id.encode()
            for i, event in enumerate(verdicts)
            if not isinstance(event, Rejected)
        }
        homes = self._homes(ids - self.leads.keys())
        return {lead_id: home for lead_id, home in homes.items() if home != self.number}


class Mismatch(Exception):
    """The changelogs cannot be taken over; the message says what is wrong and what to do."""


_ACTIVITY: Mapping[type[Envelope], str | None] = {
    **{kind: EVENTS[kind.stage] for kind in TYPES.values() if kind.stage is not None},
    CallEnded: None,
    Disqualified: EVENTS_DISQUALIFIED,
    Lost: EVENTS_LOST,
}
"""The column that counts an event as activity; a machine's answer has its own."""


def _crowded(limit: int) -> Rejected:
    return Rejected(
        "bad_value",
        f"$.lead_id: this lead already has {limit} events, the most one lead may have; "
        "is it a placeholder used for many leads?",
    )

"""The tables of one partition: what is known of each lead, and the funnel rows that follow from it.

In plain Python. `streams/compiled.pyx` does the same in C++ for those who build it: what is changed here is
changed there, and both pass the same tests.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import tzinfo
from zoneinfo import ZoneInfo

from msgspec import Struct
from msgspec.json import encode
from msgspec.structs import replace
from xxhash import xxh3_64_hexdigest

from callfunnel.schemas.codec import CROWDED, Decoder, Rejected
from callfunnel.schemas.events import NONE, TYPES, CallEnded, Connect, Disqualified, Envelope, Lost
from callfunnel.streams.columns import EVENTS, EVENTS_DISQUALIFIED, EVENTS_LOST, MACHINE_ANSWERS
from callfunnel.streams.counts import Counts
from callfunnel.streams.funnel import Change, Funnel
from callfunnel.streams.lead import Lead, contribute, fingerprint, pack, unpack
from callfunnel.streams.panes import Resolution
from callfunnel.streams.partitioning import murmur2_of_all

Verdict = Envelope | Rejected


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

    @property
    def days_kept(self) -> int:
        """How many days day rows are kept."""
        return next(each.kept // 86_400 for each in self.resolutions if each.name == "1d")


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


class Tables:
    """Leads by id, packed, and the funnel rows. Both are what the changelogs hold."""

    murmur2_of_all = staticmethod(murmur2_of_all)

    def __init__(self, fold: Fold, decoder: Decoder) -> None:
        self.leads: dict[bytes, bytes] = {}
        self.funnel = self.new_funnel(fold.resolutions, ZoneInfo(fold.timezone))
        self._fold = fold
        self._decoder = decoder

    def new_funnel(self, resolutions: tuple[Resolution, ...], zone: tzinfo) -> Funnel:
        return Funnel(resolutions, zone)

    def restore(self, funnel: Mapping[bytes, bytes], leads: dict[bytes, bytes]) -> None:
        """Take over the rows of the changelogs, without their positions."""
        self.leads = leads
        self.funnel.restore(funnel)

    def decode(
        self, values: Sequence[bytes | None], keys: Sequence[bytes | None], timestamps: Sequence[int]
    ) -> Sequence[Verdict]:
        """What each record of a batch says: for `new_leads` and `add` alone."""
        return self._decoder.decode_all(values, keys, timestamps)

    def refuse(self, verdicts: Sequence[Verdict], indices: Iterable[int], why: Rejected) -> None:
        """Refuse these records, whatever they say; a record that is refused already keeps its reason."""
        for i in indices:
            if not isinstance(verdicts[i], Rejected):
                verdicts[i] = why  # type: ignore[index]

    def new_leads(self, verdicts: Sequence[Verdict], keys: Sequence[bytes | None]) -> set[bytes]:
        """The leads of a batch of which nothing is known."""
        ids = {
            keys[i] or event.lead_id.encode()
            for i, event in enumerate(verdicts)
            if not isinstance(event, Rejected)
        }
        return ids - self.leads.keys()

    def add(
        self,
        verdicts: Sequence[Verdict],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        away: Mapping[bytes, int],
        watermark_ms: int,
    ) -> Effects:
        """Take in a batch: what was decoded, the records' keys and times in ms.

        `away` are new leads that are at home on another partition; their events stay out. `watermark_ms` is
        the largest event time before.
        """
        fold = self._fold
        leads = self.leads
        counts = Counts()
        opened: dict[bytes, Lead] = {}
        changed: set[bytes] = set()
        rejected: list[tuple[int, Rejected]] = []
        foreign: list[tuple[int, int]] = []
        duplicates = late = 0

        for i, event in enumerate(verdicts):
            if isinstance(event, Rejected):
                rejected.append((i, event))
                continue
            lead_id = keys[i] or event.lead_id.encode()
            lead = opened.get(lead_id)
            if lead is None:
                if lead_id in away:
                    foreign.append((i, away[lead_id]))
                    continue
                record = leads.get(lead_id)
                lead = opened[lead_id] = Lead() if record is None else unpack(record)
            mark = fingerprint(event.event_id)
            if mark in lead.seen and lead.has_seen(mark):
                duplicates += 1
                continue
            if len(lead.seen) >= fold.lead_events * 8:
                rejected.append((i, crowded(fold.lead_events)))
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

        return Effects(
            funnel=self.funnel.add(counts, watermark_ms),
            leads=lead_changes,
            rejected=rejected,
            foreign=foreign,
            duplicates=duplicates,
            late=late,
            watermark_ms=watermark_ms,
        )


_ACTIVITY: Mapping[type[Envelope], str | None] = {
    **{kind: EVENTS[kind.stage] for kind in TYPES.values() if kind.stage is not None},
    CallEnded: None,
    Disqualified: EVENTS_DISQUALIFIED,
    Lost: EVENTS_LOST,
}
"""The column that counts an event as activity; a machine's answer has its own."""


def crowded(limit: int) -> Rejected:
    return Rejected(
        CROWDED,
        f"`$.lead_id` names a lead that has {limit} events already, the most one lead may have: "
        "is it a placeholder for many leads?",
    )

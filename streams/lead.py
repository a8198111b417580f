"""The facts of one lead, and what a lead adds to the tables.

The law here: a lead is a function of the *set* of its events. `absorb` only ever keeps a minimum, a flag or a
membership, so that order and repetition cannot matter; `contribute` says what the facts mean. A lead that
changes is taken back as it was and counted as it is, and late events, changed verdicts and void reaches need
no case of their own. Definitions: `streams/README.md`.
"""

import msgspec
from xxhash import xxh3_64_digest, xxh3_64_intdigest

from callfunnel.schemas.events import (
    NONE,
    STAGES,
    CallEnded,
    Connect,
    Disqualified,
    DmReached,
    Envelope,
    Lost,
    Qualified,
    Won,
)
from callfunnel.streams.columns import (
    AGENT_HANGUPS,
    ATTEMPT_BINS,
    ATTEMPT_MS,
    AWAITED,
    CONNECT_BINS,
    CONNECT_MS,
    DIALED_BEFORE_CREATION,
    DM_HANGUPS,
    IMPLIED,
    LEADS,
    UNCALLED,
    bin_of,
)
from callfunnel.streams.counts import Counts, Delta

Arrival = tuple[int, int, str, str, str]
"""(at_ms, rank, event_id, team, agent): compares in the order of events."""

First = tuple[int, int, str, str]
"""(at_ms, rank, event_id, value) of the earliest event that carries a dimension."""

Reach = tuple[int, int, str, str, str, str, str, str]
"""(at_ms, rank, event_id, team, agent, campaign, source, location) of a call's earliest `dm_reached`."""

End = tuple[int, int, str, float | None, str | None]
"""(at_ms, rank, event_id, talk_seconds, hangup_by) of a call's earliest `call_ended`."""

CREATED, DIALED, CONNECTED, REACHED, QUALIFIED, WON = range(6)


MOST_EVENTS = 4_000
"""Of one lead. An id with more stands for many leads, and a lead's record has to fit into one message."""


class Call(msgspec.Struct, array_like=True, gc=False):
    """What is known of one call of a lead."""

    reach: Reach | None = None
    end: End | None = None
    verdict: bool = False

    def hangup(self, hangup_ms: int) -> str | None:
        """The column that counts the call when it ended at once; None when it did not."""
        if self.reach is None or self.end is None or self.verdict:
            return None
        ended_ms, _, _, talk_seconds, hangup_by = self.end
        soon = 0 <= ended_ms - self.reach[0] < hangup_ms
        if not soon and (talk_seconds is None or talk_seconds * 1000 >= hangup_ms):
            return None
        return AGENT_HANGUPS if hangup_by == "agent" else DM_HANGUPS


class Lead(msgspec.Struct, array_like=True, gc=False):
    """The facts of one lead; packed, the record of the leads table (about 100 to 250 bytes)."""

    seen: bytes = b""
    """The 8-byte fingerprints of the event ids taken in."""
    closed: bool = False
    campaign: First | None = None
    source: First | None = None
    location: First | None = None
    created: Arrival | None = None
    dialed: Arrival | None = None
    connected: Arrival | None = None
    reached: Arrival | None = None
    """The earliest `dm_reached` outside any call; those of a call are in `calls`."""
    qualified: Arrival | None = None
    won: Arrival | None = None
    calls: dict[int, Call] = {}

    def has_seen(self, fingerprint: bytes) -> bool:
        return holds(self.seen, fingerprint)

    def absorb(self, event: Envelope, at_ms: int) -> bool:
        """Take in one event that was not seen before. True when the lead's contributions may have changed."""
        at = (at_ms, event.rank, event.event_id)
        changed = False

        value = event.campaign
        if value and (self.campaign is None or at < self.campaign):
            self.campaign = (*at, value)
            changed = True
        value = event.source
        if value and (self.source is None or at < self.source):
            self.source = (*at, value)
            changed = True
        value = event.location
        if value and (self.location is None or at < self.location):
            self.location = (*at, value)
            changed = True

        kind = type(event)
        if event.call_id and kind in _OF_A_CALL:
            changed |= self._absorb_call(event, event.call_id, at)
            if kind is DmReached:
                return changed
        if kind in _CLOSING and not self.closed:
            self.closed = True
            changed = True
        stage = event.stage
        if stage is None or (kind is Connect and event.answered_by == "machine"):  # type: ignore[attr-defined]
            return changed
        field = STAGES[stage]
        first = getattr(self, field)
        if first is None or at < first:
            setattr(self, field, (*at, event.team or NONE, event.agent or NONE))
            return True
        return changed

    def _absorb_call(self, event: Envelope, call_id: str, at: tuple[int, int, str]) -> bool:
        call_key = xxh3_64_intdigest(call_id.encode())
        call = self.calls.get(call_key)
        if call is None:
            call = self.calls[call_key] = Call()
        if isinstance(event, DmReached):
            if call.reach is not None and call.reach < at:
                return False
            call.reach = (
                *(*at, event.team or NONE, event.agent or NONE),
                *(event.campaign or NONE, event.source or NONE, event.location or NONE),
            )
            return True
        if isinstance(event, CallEnded):
            if call.end is not None and call.end[:3] < at:
                return False
            call.end = (*at, event.talk_seconds, event.hangup_by)
        elif call.verdict:
            return False
        else:
            call.verdict = True
        return call.reach is not None


_OF_A_CALL = frozenset({DmReached, CallEnded, Qualified, Disqualified, Won})
_CLOSING = frozenset({Disqualified, Lost, Won})

pack = msgspec.msgpack.Encoder().encode
unpack = msgspec.msgpack.Decoder(Lead).decode


def fingerprint(event_id: str) -> bytes:
    """8 bytes that stand for an event id in its lead's record: two ids are alike once in 2⁶⁴ pairs."""
    return xxh3_64_digest(event_id.encode())


def holds(seen: bytes, fingerprint: bytes) -> bool:
    """Whether a fingerprint is among those that were put together."""
    at = seen.find(fingerprint)
    while at > 0 and at % 8:
        at = seen.find(fingerprint, at + 1)
    return at >= 0


def pseudonym(lead_id: bytes) -> str:
    """What logs call a lead: five hex digits tell leads apart, and are too few to find out whose id it is."""
    return f"{xxh3_64_intdigest(lead_id) >> 44:05x}"


def contribute(lead: Lead, hangup_ms: int, n: int, counts: Counts) -> None:
    """Count `n` times what the lead adds to the leads, hang-up and response columns; -1 takes it back."""
    campaign = lead.campaign[3] if lead.campaign else NONE
    source = lead.source[3] if lead.source else NONE
    location = lead.location[3] if lead.location else NONE

    reached = lead.reached
    void: Arrival | None = None
    for call in lead.calls.values():
        reach = call.reach
        if reach is None:
            continue
        hangup = call.hangup(hangup_ms)
        if hangup:
            minute = reach[0] // 60_000 * 60
            its_campaign, its_source, its_location = reach[5:]
            counts.campaigns[its_campaign, its_source][minute][hangup] += n
            counts.teams[reach[3:5]][minute][hangup] += n
            counts.locations[its_location,][minute][hangup] += n
        if hangup == DM_HANGUPS:
            if void is None or reach[:3] < void:
                void = reach[:5]
        elif reached is None or reach[:3] < reached:
            reached = reach[:5]

    by_campaign = counts.campaigns[campaign, source]
    by_location = counts.locations[location,]
    arrival: Arrival | None = None
    placed: Arrival | None = None
    places: tuple[Delta, ...] = ()
    called = False
    own = (lead.created, lead.dialed, lead.connected, reached, lead.qualified, lead.won)
    for stage in (WON, QUALIFIED, REACHED, CONNECTED, DIALED, CREATED):
        implied = True
        first = own[stage]
        if first is not None and (arrival is None or first < arrival):
            arrival = first
            implied = False
        if stage == CONNECTED and void is not None and (arrival is None or void < arrival):
            arrival = void
            implied = True
        if arrival is None:
            continue
        called |= stage == DIALED
        if arrival is not placed:  # an implied arrival is where the one that implies it is
            placed, minute = arrival, arrival[0] // 60_000 * 60
            places = by_campaign[minute], counts.teams[arrival[3:]][minute], by_location[minute]
        column = LEADS[stage]
        for columns in places:
            columns[column] += n
            if implied:
                columns[IMPLIED] += n

    if lead.created is None:
        return
    created_ms = lead.created[0]
    columns = by_campaign[created_ms // 60_000 * 60]
    if lead.dialed is not None and lead.dialed[0] < created_ms:
        columns[DIALED_BEFORE_CREATION] += n
        return
    columns[AWAITED] += n
    if lead.dialed is not None:
        response_ms = lead.dialed[0] - created_ms
        columns[ATTEMPT_BINS[bin_of(response_ms)]] += n
        columns[ATTEMPT_MS] += n * response_ms
    if lead.connected is not None and lead.connected[0] >= created_ms:
        response_ms = lead.connected[0] - created_ms
        columns[CONNECT_BINS[bin_of(response_ms)]] += n
        columns[CONNECT_MS] += n * response_ms
    if not called and not lead.closed:
        columns[UNCALLED] += n

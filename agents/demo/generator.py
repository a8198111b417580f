"""A telesales floor that never was: agents who dial, talk, sell and lose, as an endless stream of events.

For the demo, for load and for rehearsals of what goes wrong. The law: a stream is a function of its
arguments; the same seed, floor, start and faults give the same events with the same ids.

The figures are typical ones of the trade: 2–5 % of the reached hang up at once, talk time is lognormal with a
median of 3 minutes, four in ten new leads are called after about 3 minutes, three after about 50, the others
next morning or never.
"""

import random
from collections.abc import Callable, Iterator
from functools import partial
from heapq import heappop, heappush
from itertools import count

from msgspec import Struct
from msgspec.structs import replace

Event = dict[str, object]

_MINUTE_MS = 60_000
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS

_MORNING_MS = 9 * _HOUR_MS
_MOST_ATTEMPTS = 6
_RING_SECONDS = (9.0, 30.0)
_TALK_MU, _TALK_SIGMA, _LONGEST_TALK_SECONDS = 5.2, 0.9, 7200.0
_WON_TALKS_LONGER = 2.5
_GATEKEEPER_SECONDS = (5.0, 45.0)
_TO_DECISION_MAKER_SECONDS = (0.0, 20.0)
_HANGUP_SECONDS = (1.0, 12.0)
_MACHINE_SHARE = 0.10
_AGENT_HANGUP_SHARE = 0.005
_WON_AT_ONCE_SHARE = 0.6
_CALLBACK_ANSWERED_SHARE = 0.75
_NOT_QUALIFIED_IS_FINAL_SHARE = 0.6
_MEAN_AMOUNT = 1200.0

_WHY_DISQUALIFIED = ("no need", "no budget", "wrong number", "already a customer")
_WHY_LOST = ("price", "competitor", "timing")
_UNREACHABLE = "unreachable"


class Source(Struct, frozen=True):
    """Where leads come from. `quality` scales how well they connect, qualify and buy."""

    name: str
    share: float
    quality: float


class Campaign(Struct, frozen=True):
    """What is sold, and how it goes: each share is of the step before it, the first of all dials."""

    name: str
    connected: float
    reached: float
    hung_up: float
    qualified: float
    won: float


class FloorSettings(Struct, frozen=True, kw_only=True):
    """Who works where, on what, and how fast. Agents are dealt out evenly over the campaigns' teams."""

    seats: int = 100
    agents_per_team: int = 12
    dials_per_seat_hour: float = 40.0
    leads_per_seat_hour: float = 8.0
    campaigns: tuple[Campaign, ...] = (
        Campaign("solar", connected=0.34, reached=0.65, hung_up=0.02, qualified=0.58, won=0.70),
        Campaign("fiber", connected=0.27, reached=0.60, hung_up=0.03, qualified=0.50, won=0.52),
        Campaign("insurance", connected=0.19, reached=0.45, hung_up=0.05, qualified=0.34, won=0.30),
    )
    sources: tuple[Source, ...] = (
        Source("web", 0.55, 1.05),
        Source("referral", 0.15, 1.25),
        Source("partner", 0.30, 0.90),
    )
    """Of new leads, which are created by an event and wait for their first call."""
    cold_list: Source = Source("list", 1.0, 0.92)
    """What an agent dials who has nothing else to do: leads nobody announced."""
    locations: tuple[str, ...] = ("lisbon", "leeds", "leipzig")
    warm_seconds: int = 3600
    """How long the floor has been at work when the stream starts: that much of the past is told at once."""

    @property
    def events_per_second(self) -> float:
        """What to expect of a floor of this size, roughly."""
        return self.seats * self._events_per_seat_hour / 3600

    def at_rate(self, events_per_second: float) -> "FloorSettings":
        """This floor with as many seats as it takes."""
        return replace(self, seats=max(1, round(events_per_second * 3600 / self._events_per_seat_hour)))

    @property
    def _events_per_seat_hour(self) -> float:
        def of_a_dial(campaign: Campaign) -> float:
            reached = campaign.connected * campaign.reached
            return 1 + 2 * (_MACHINE_SHARE + campaign.connected) + reached * (1 + campaign.qualified)

        per_dial = sum(map(of_a_dial, self.campaigns)) / len(self.campaigns)
        return self.dials_per_seat_hour * per_dial + self.leads_per_seat_hour


class Faults(Struct, frozen=True, kw_only=True):
    """What goes wrong on the way to Kafka, each as a share of events; `lost_ends` of calls."""

    out_of_order: float = 0.0
    late: float = 0.0
    duplicated: float = 0.0
    lost_ends: float = 0.0
    poison: float = 0.0


TYPICAL_FAULTS = Faults(out_of_order=0.005, late=0.01, duplicated=0.01, lost_ends=0.002)
"""What to expect of healthy systems."""


def live(
    seed: int, floor: FloorSettings, start_ms: int, faults: Faults | None = None
) -> Iterator[tuple[int, Event]]:
    """The endless stream of `floor`: when to publish (Unix ms, never going back) and the event.

    What the floor did in the `warm_seconds` before `start_ms` is to be published at `start_ms`: the stream
    begins with calls under way and leads that wait.
    """
    happened = _Floor(random.Random(seed), f"s{seed}", floor, start_ms).at_work()
    if faults:
        happened = _garbled(random.Random(f"faults {seed}"), faults, happened)
    for at_ms, event in happened:
        yield max(at_ms, start_ms), event


class _Lead:
    def __init__(self, name: str, campaign: Campaign, source: Source) -> None:
        self.name = name
        self.campaign = campaign
        self.source = source
        self.qualified = False
        self.attempts = 0
        self.said = 0


class _Agent(Struct, frozen=True):
    name: str
    team: str
    location: str
    campaign: Campaign
    skill: float


class _Floor:
    """A simulation by appointments: a heap of what happens next, events to tell and steps to take."""

    def __init__(self, chance: random.Random, prefix: str, floor: FloorSettings, start_ms: int) -> None:
        self._chance = chance
        self._prefix = prefix
        self._floor = floor
        self._lead_numbers = count(1)
        self._tickets = count()
        self._next: list[tuple[int, int, Event | Callable[[int], None]]] = []
        self._new: dict[str, list[tuple[int, int, _Lead]]] = {c.name: [] for c in floor.campaigns}
        self._again: dict[str, list[tuple[int, int, _Lead]]] = {c.name: [] for c in floor.campaigns}

        opens_ms = start_ms - floor.warm_seconds * 1000
        for number in range(floor.seats):
            cycle_ms = _HOUR_MS / floor.dials_per_seat_hour
            self._then(opens_ms + int(chance.uniform(0, cycle_ms)), partial(self._work, self._hire(number)))
        self._then(opens_ms, self._lead_enters)

    def at_work(self) -> Iterator[tuple[int, Event]]:
        while True:
            at_ms, _, what = heappop(self._next)
            if isinstance(what, dict):
                yield at_ms, what
            else:
                what(at_ms)

    def _then(self, at_ms: int, what: Event | Callable[[int], None]) -> None:
        heappush(self._next, (at_ms, next(self._tickets), what))

    def _hire(self, number: int) -> _Agent:
        team = number // self._floor.agents_per_team
        campaigns, locations = self._floor.campaigns, self._floor.locations
        if self._floor.seats < self._floor.agents_per_team * len(campaigns):
            team = number % len(campaigns)  # a small floor still works on everything
        return _Agent(
            name=f"agent-{number + 1:03d}",
            team=f"team-{team + 1}",
            location=locations[team % len(locations)],
            campaign=campaigns[team % len(campaigns)],
            skill=self._chance.lognormvariate(0, 0.15),
        )

    def _lead_enters(self, at_ms: int) -> None:
        chance, floor = self._chance, self._floor
        campaign = chance.choice(floor.campaigns)
        source = chance.choices(floor.sources, [source.share for source in floor.sources])[0]
        lead = self._new_lead(campaign, source)
        self._tell(at_ms, lead, "lead_created")
        if (called_ms := self._first_call(at_ms)) is not None:
            heappush(self._new[campaign.name], (called_ms, next(self._tickets), lead))
        per_ms = floor.seats * floor.leads_per_seat_hour / _HOUR_MS
        self._then(at_ms + int(chance.expovariate(per_ms)), self._lead_enters)

    def _first_call(self, created_ms: int) -> int | None:
        """When somebody means to call a new lead; a busy floor calls later."""
        luck = self._chance.random()
        if luck < 0.40:
            return created_ms + int(self._chance.lognormvariate(0, 0.5) * 3 * _MINUTE_MS)
        if luck < 0.70:
            return created_ms + int(self._chance.lognormvariate(0, 0.3) * 50 * _MINUTE_MS)
        return self._next_morning(created_ms) if luck < 0.90 else None

    def _next_morning(self, at_ms: int) -> int:
        days = (at_ms - _MORNING_MS) // _DAY_MS + 1
        return days * _DAY_MS + _MORNING_MS + int(self._chance.uniform(0, _HOUR_MS))

    def _work(self, agent: _Agent, at_ms: int) -> None:
        """One call of an agent, the whole of it, and when the next one begins."""
        lead = self._pick(agent, at_ms)
        ended_ms = self._call(agent, lead, at_ms)
        self._then(ended_ms + self._pause_ms(agent.campaign), partial(self._work, agent))

    def _pick(self, agent: _Agent, at_ms: int) -> _Lead:
        for waiting in (self._new[agent.campaign.name], self._again[agent.campaign.name]):
            if waiting and waiting[0][0] <= at_ms:
                return heappop(waiting)[2]
        return self._new_lead(agent.campaign, self._floor.cold_list)

    def _pause_ms(self, campaign: Campaign) -> int:
        """What is left of the time a dial may take, so that the floor dials as often as it is meant to."""
        talk_seconds = 270 * campaign.connected * campaign.reached + 25 * campaign.connected
        mean_seconds = max(
            2.0, 3600 / self._floor.dials_per_seat_hour - sum(_RING_SECONDS) / 2 - talk_seconds
        )
        return int(self._chance.expovariate(1 / mean_seconds) * 1000)

    def _call(self, agent: _Agent, lead: _Lead, at_ms: int) -> int:
        """Tell a call, say what becomes of the lead. Returns when the agent is free."""
        chance, quality = self._chance, lead.source.quality
        lead.attempts += 1
        tell = partial(self._tell, lead=lead, agent=agent, call=lead.attempts)
        tell(at_ms, kind="dial")
        answered_ms = at_ms + self._seconds(_RING_SECONDS)

        luck = chance.random()
        connected = _CALLBACK_ANSWERED_SHARE if lead.qualified else _share(lead.campaign.connected * quality)
        if luck >= connected:
            self._again_or_never(lead, answered_ms)
            if luck >= connected + _MACHINE_SHARE:
                return answered_ms
            tell(answered_ms, kind="connect", answered_by="machine")
            return self._hang_up(tell, answered_ms, answered_ms + self._seconds((2.0, 8.0)), "agent")

        tell(answered_ms, kind="connect", answered_by="human")
        if not lead.qualified and chance.random() >= lead.campaign.reached:
            self._again_or_never(lead, answered_ms)
            ended_ms = answered_ms + self._seconds(_GATEKEEPER_SECONDS)
            return self._hang_up(tell, answered_ms, ended_ms, "customer")

        reached_ms = answered_ms + self._seconds(_TO_DECISION_MAKER_SECONDS)
        tell(reached_ms, kind="dm_reached")
        if chance.random() < lead.campaign.hung_up:
            self._again_or_never(lead, reached_ms)
            ended_ms = reached_ms + self._seconds(_HANGUP_SECONDS)
            by = "agent" if chance.random() < _AGENT_HANGUP_SHARE else "customer"
            return self._hang_up(tell, answered_ms, ended_ms, by)

        ended_ms = self._talk(tell, agent, lead, reached_ms)
        return self._hang_up(tell, answered_ms, ended_ms, chance.choice(("customer", "agent")))

    def _talk(self, tell: Callable[..., None], agent: _Agent, lead: _Lead, reached_ms: int) -> int:
        """The conversation with the decision maker, and its verdict. Returns its end."""
        chance, quality = self._chance, lead.source.quality * agent.skill
        talk_ms = 1000 * min(_LONGEST_TALK_SECONDS, chance.lognormvariate(_TALK_MU, _TALK_SIGMA))
        new_to_us = not lead.qualified
        lead.qualified = lead.qualified or chance.random() < _share(lead.campaign.qualified * quality)
        if not lead.qualified:
            ended_ms = reached_ms + int(talk_ms)
            if chance.random() < _NOT_QUALIFIED_IS_FINAL_SHARE:
                tell(ended_ms, kind="disqualified", reason=chance.choice(_WHY_DISQUALIFIED))
            else:
                self._again_or_never(lead, ended_ms)
            return ended_ms

        decides = chance.random() < (_WON_AT_ONCE_SHARE if new_to_us else 1.0)
        wins = chance.random() < _share(lead.campaign.won * quality)
        amount = chance.lognormvariate(0, 0.5) * _MEAN_AMOUNT
        money = {"currency": "EUR"}
        if decides and wins:
            talk_ms *= _WON_TALKS_LONGER
        ended_ms = reached_ms + int(talk_ms)
        if new_to_us:
            tell(
                reached_ms + int(0.6 * talk_ms), kind="qualified", expected_amount=f"{amount:.0f}.00", **money
            )
        if not decides:
            self._call_again(lead, ended_ms)
        elif wins:
            tell(reached_ms + int(0.95 * talk_ms), kind="won", amount=f"{amount:.2f}", **money)
        else:
            tell(ended_ms, kind="lost", reason=chance.choice(_WHY_LOST))
        return ended_ms

    def _hang_up(self, tell: Callable[..., None], answered_ms: int, ended_ms: int, by: str) -> int:
        tell(ended_ms, kind="call_ended", talk_seconds=(ended_ms - answered_ms) / 1000, hangup_by=by)
        return ended_ms

    def _again_or_never(self, lead: _Lead, at_ms: int) -> None:
        if lead.attempts < _MOST_ATTEMPTS:
            self._call_again(lead, at_ms)
        else:
            self._tell(at_ms + _MINUTE_MS, lead, "lost", reason=_UNREACHABLE)

    def _call_again(self, lead: _Lead, at_ms: int) -> None:
        soon = self._chance.random() < 0.5
        again_ms = at_ms + int(self._chance.uniform(0.3, 3) * _HOUR_MS) if soon else self._next_morning(at_ms)
        heappush(self._again[lead.campaign.name], (again_ms, next(self._tickets), lead))

    def _new_lead(self, campaign: Campaign, source: Source) -> _Lead:
        return _Lead(f"{self._prefix}-{next(self._lead_numbers):06d}", campaign, source)

    def _seconds(self, between: tuple[float, float]) -> int:
        return int(self._chance.uniform(*between) * 1000)

    def _tell(
        self,
        at_ms: int,
        lead: _Lead,
        kind: str,
        agent: _Agent | None = None,
        call: int | None = None,
        **said: object,
    ) -> None:
        lead.said += 1
        event: Event = {
            "event_id": f"{lead.name}-{lead.said}",
            "type": kind,
            "occurred_at": at_ms,
            "lead_id": lead.name,
            "campaign": lead.campaign.name,
            "source": lead.source.name,
        }
        if agent:
            event |= {"agent": agent.name, "team": agent.team, "location": agent.location}
        if call:
            event["call_id"] = f"{lead.name}-call-{call}"
        self._then(at_ms, event | said)


def _share(probability: float) -> float:
    return min(0.95, probability)


def _garbled(
    chance: random.Random, faults: Faults, happened: Iterator[tuple[int, Event]]
) -> Iterator[tuple[int, Event]]:
    """The stream as it comes through a real network: late, twice, in another order, or not at all."""
    on_the_way: list[tuple[int, int, Event]] = []
    tickets = count()
    for at_ms, event in happened:
        if event["type"] == "call_ended" and chance.random() < faults.lost_ends:
            continue
        delay_ms, luck = 0, chance.random()
        if luck < faults.late:
            delay_ms = int(chance.uniform(1, 10) * _MINUTE_MS)
        elif luck < faults.late + faults.out_of_order:
            delay_ms = int(chance.uniform(1, 15) * 1000)
        heappush(on_the_way, (at_ms + delay_ms, next(tickets), event))
        if chance.random() < faults.duplicated:
            again_ms = at_ms + delay_ms + int(chance.uniform(0, 30) * 1000)
            heappush(on_the_way, (again_ms, next(tickets), event))
        if chance.random() < faults.poison:
            heappush(on_the_way, (at_ms, next(tickets), _poisoned(chance, event)))
        while on_the_way and on_the_way[0][0] <= at_ms:
            arrives_ms, _, arrived = heappop(on_the_way)
            yield arrives_ms, arrived


def _poisoned(chance: random.Random, event: Event) -> Event:
    """An event no contract allows."""
    identity = {"event_id": f"{event['event_id']}-bad"}
    return chance.choice(
        (
            event | identity | {"type": "coffee_break"},
            event | identity | {"occurred_at": "yesterday"},
            event | identity | {"lead_id": ""},
            event | identity | {"campaign": 7},
            {field: value for field, value in event.items() if field != "lead_id"} | identity,
        )
    )

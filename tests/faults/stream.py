"""What is published in a run, and what must come of it: a function of the seed and the number of records.

The law: the expectation is computed from the events as they were made, by `streams/oracle.py`. It knows
neither Kafka nor the decoder: a poisoned record carries the reason it must be refused for from its making.
"""

import random
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from heapq import heappop, heappush
from itertools import count, islice
from typing import Any, NamedTuple

import msgspec
import orjson
from kafka.partitioner.default import murmur2

from callfunnel.agents.demo import generator
from callfunnel.schemas.events import NONE, STAGES
from callfunnel.schemas.events import Event as Accepted
from callfunnel.streams import oracle
from callfunnel.streams.definition import is_machine
from callfunnel.streams.log import entry_of

START_MS = 1_717_200_000_000
MINUTE_MS = 60_000

PARTITIONS = 6
FLOODED = 0
"""The partition that is flooded with poison."""

Event = dict[str, Any]


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """What goes wrong on the way, each as a share of the events; `hot` of them are of ten leads."""

    disorder: float = 0.30
    late: float = 0.01
    duplicates: float = 0.05
    poison: float = 0.01
    hot: float = 0.0
    seats: int = 60
    flood: float = 0.0
    """Amid the stream, this share of it: there, every record that is at home on `FLOODED` is poison."""


class Sent(NamedTuple):
    """A record, and the reason it must be refused for; None: it is good."""

    value: bytes | None
    key: bytes | None
    at_ms: int
    reason: str | None
    event: Event


def _with(**fields: Any) -> Callable[[Event], bytes]:
    return lambda event: orjson.dumps(event | fields)


def _without(field: str) -> Callable[[Event], bytes]:
    return lambda event: orjson.dumps({name: value for name, value in event.items() if name != field})


POISON: tuple[tuple[str, Callable[[Event], bytes]], ...] = (
    ("not_json", lambda event: orjson.dumps(event)[:-1]),
    ("not_json", lambda event: b""),
    ("not_utf8", lambda event: orjson.dumps(event)[:-1] + b',"note":"\xff"}'),
    ("not_an_object", lambda event: b"[" + orjson.dumps(event) + b"]"),
    ("too_deep", _with(note=[[[[[[[[]]]]]]]])),
    ("too_large", _with(note="x" * 70_000)),
    ("unknown_type", _with(type="coffee_break")),
    ("unsupported_version", _with(schema_version=2)),
    ("missing_field", _without("lead_id")),
    ("missing_field", _without("occurred_at")),
    ("wrong_type", _with(campaign=7)),
    ("bad_value", _with(lead_id="")),
    ("bad_value", _with(occurred_at="yesterday")),
    ("key_mismatch", _with(lead_id="somebody-else")),
)
"""How a good event is spoilt, and the reason that the contract names for it."""


def records(seed: int, n: int, mix: Mix | None = None) -> Iterator[Sent]:
    """The first `n` records of a floor whose network repeats, delays, disorders and spoils."""
    mix = mix or Mix()
    sent = islice(_records(seed, mix), n)
    return _flooded(sent, seed, flood(n, mix)) if mix.flood else sent


def flood(n: int, mix: Mix) -> range:
    """The places of the stream in which one partition gets poison alone."""
    length = int(n * mix.flood)
    start = (n - length) // 2
    return range(start, start + length)


def _flooded(stream: Iterator[Sent], seed: int, places: range) -> Iterator[Sent]:
    chance = random.Random(f"flood {seed}")
    for place, sent in enumerate(stream):
        if place in places and sent.reason is None and home(sent.event["lead_id"], PARTITIONS) == FLOODED:
            reason, spoil = chance.choice(POISON)
            yield sent._replace(value=spoil(sent.event), reason=reason)
        else:
            yield sent


def _records(seed: int, mix: Mix) -> Iterator[Sent]:
    chance = random.Random(f"network {seed}")
    floor = generator.FloorSettings(seats=mix.seats)
    waiting: list[tuple[int, int, Sent]] = []
    ticket = count()
    for at_ms, event in generator.live(seed, floor, START_MS):
        if chance.random() < mix.hot:
            event |= {"lead_id": f"hot-{chance.randrange(10)}"}
        luck = chance.random()
        delay_ms = 0
        if luck < mix.late:
            delay_ms = int(chance.uniform(11, 60) * MINUTE_MS)
        elif luck < mix.late + mix.disorder:
            delay_ms = int(chance.uniform(0, 10) * MINUTE_MS)
        value, key = orjson.dumps(event), str(event["lead_id"]).encode()
        _put(waiting, next(ticket), Sent(value, key, at_ms + delay_ms, None, event))
        if chance.random() < mix.duplicates:
            again_ms = at_ms + delay_ms + int(chance.uniform(0, 120) * MINUTE_MS)
            _put(waiting, next(ticket), Sent(value, key, again_ms, None, event))
        if chance.random() < mix.poison:
            reason, spoil = chance.choice(POISON)
            spoilt = event | {"event_id": f"{event['event_id']}-bad"}
            _put(waiting, next(ticket), Sent(spoil(spoilt), key, at_ms, reason, spoilt))
        while waiting and waiting[0][0] <= at_ms:
            yield heappop(waiting)[2]


def _put(waiting: list[tuple[int, int, Sent]], ticket: int, sent: Sent) -> None:
    heappush(waiting, (sent.at_ms, ticket, sent))


Counters = dict[tuple[str, str, str], int]
"""`callfunnel_events_total` by stage, campaign and source, without zeros."""


class Expected(msgspec.Struct):
    """What the tables and the metrics must say."""

    tables: dict[int, oracle.Tables]
    applied: int
    leads: int
    counters: list[Counters]
    """After so many records as were asked for, and at the end."""


def home(lead_id: str, partitions: int) -> int:
    return (murmur2(lead_id.encode()) & 0x7FFFFFFF) % partitions


def expected(
    seed: int,
    n: int,
    partitions: int,
    mix: Mix | None = None,
    *,
    without: Container[int] = (),
    after: Sequence[int] = (),
) -> Expected:
    """Of the first `n` records but those at the places `without`, which nobody could read."""
    good: list[Accepted] = []
    after_so_many: list[Counters] = []
    for place, sent in enumerate(records(seed, n, mix)):
        if place in after:
            after_so_many.append(counters(good))
        if sent.reason is None and place not in without:
            good.append(msgspec.convert(sent.event, Accepted))
    accepted = without_copies(good)
    homes = {event.lead_id: home(event.lead_id, partitions) for event in accepted}
    tables = oracle.partitioned(accepted, homes.__getitem__)
    return Expected(
        tables, applied=len(accepted), leads=len(homes), counters=[*after_so_many, counters(accepted)]
    )


def without_copies(events: Iterable[Accepted]) -> list[Accepted]:
    return list({(event.lead_id, entry_of(event)): event for event in events}.values())


def counters(events: list[Accepted]) -> Counters:
    found = Counter[tuple[str, str, str]]()
    for event in without_copies(events):
        if event.stage is not None and not is_machine(entry_of(event)):
            found[STAGES[event.stage], event.campaign or NONE, event.source or NONE] += 1
    return dict(found)

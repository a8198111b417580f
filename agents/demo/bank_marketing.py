"""A real campaign as events: 45,211 clients of a bank, called 124,956 times from May 2008 to November 2010.

So that a funnel can be seen, and proven, on data nobody made up for it. The mapping is written down in
`agents/demo/data/README.md`; the law is that nothing is invented: what the table does not hold is either
derived by a rule of that page or not emitted.
"""

import csv
import gzip
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from io import TextIOWrapper
from pathlib import Path

BUNDLED = Path(__file__).parent / "data" / "bankmarketing.csv.gz"
EVENTS = 265_878
"""How many events the bundled file becomes."""
KNOWN = {"dialed": 124_956, "connected": 45_211, "reached": 45_211, "won": 5_289}
"""Events of a stage, as the page of the data has them: nobody's fold counted these."""

_FIRST_YEAR = 2008
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_SOURCES = {
    "unknown": "new",
    "success": "previous-success",
    "failure": "previous-failure",
    "other": "previous-other",
}

_OPENS = timedelta(hours=9)
_CLOSES = timedelta(hours=20)
_DAY = timedelta(days=1)
_SATURDAY = 5
_BETWEEN_ATTEMPTS = timedelta(hours=1)
_SALE_BEFORE_END_MS = 1000

_TYPES = ("dial", "connect", "dm_reached", "won", "call_ended")
_DIAL, _CONNECT, _REACHED, _WON, _ENDED = range(5)

Row = Mapping[str, str]


def read(path: Path = BUNDLED) -> Iterator[dict[str, str]]:
    """The rows of the table as text, in file order: by the day of the last contact."""
    with gzip.open(path) as packed, TextIOWrapper(packed, encoding="ascii", newline="") as lines:
        yield from csv.DictReader(lines, delimiter=";")


def events(rows: Iterable[Row]) -> Iterator[dict[str, object]]:
    """The events of `rows`, ready to publish, in event-time order; the same rows give the same events."""
    leads: list[tuple[str, str, str]] = []
    talks: list[int] = []
    moments: list[tuple[int, int, int, int]] = []
    for number, (last_dial, row) in enumerate(_timed(rows)):
        attempts, talk_seconds = int(row["campaign"]), int(row["duration"])
        leads.append((f"bank-{number + 1:05d}", f"term-deposit-{last_dial.year}", _SOURCES[row["poutcome"]]))
        talks.append(talk_seconds)

        at = last_dial
        for attempt in range(attempts - 1, 0, -1):
            at = _previous_attempt(at)
            moments.append((_ms(at), _DIAL, number, attempt))
        starts_ms = _ms(last_dial)
        ends_ms = starts_ms + talk_seconds * 1000
        moments.append((starts_ms, _DIAL, number, attempts))
        moments.append((starts_ms, _CONNECT, number, attempts))
        moments.append((starts_ms, _REACHED, number, attempts))
        if row["y"] == "yes":
            moments.append((max(starts_ms, ends_ms - _SALE_BEFORE_END_MS), _WON, number, attempts))
        moments.append((ends_ms, _ENDED, number, attempts))

    moments.sort()
    for at_ms, kind, number, attempt in moments:
        lead_id, campaign, source = leads[number]
        event: dict[str, object] = {
            "event_id": f"{lead_id}-{_TYPES[kind]}-{attempt}",
            "type": _TYPES[kind],
            "occurred_at": at_ms,
            "lead_id": lead_id,
            "campaign": campaign,
            "source": source,
            "call_id": f"{lead_id}-call-{attempt}",
        }
        if kind == _CONNECT:
            event["answered_by"] = "human"
        elif kind == _ENDED:
            event["talk_seconds"] = talks[number]
        yield event


def _timed(rows: Iterable[Row]) -> Iterator[tuple[datetime, Row]]:
    """Each row with the moment of its last dial: the rows of a day are spread over the calling hours."""
    for day, of_the_day in _days(rows):
        opens = datetime(day.year, day.month, day.day, tzinfo=UTC) + _OPENS
        for position, row in enumerate(of_the_day):
            spread_seconds = (_CLOSES - _OPENS).seconds * position // len(of_the_day)
            yield opens + timedelta(seconds=spread_seconds), row


def _days(rows: Iterable[Row]) -> Iterator[tuple[date, list[Row]]]:
    """Consecutive rows of the same date. There is no year: a month that goes back begins the next."""
    year, current, of_the_day = _FIRST_YEAR, None, list[Row]()
    for row in rows:
        month = _MONTHS.index(row["month"]) + 1
        if current is not None and month < current.month:
            year += 1
        day = date(year, month, int(row["day"]))
        if day != current:
            if current is not None:
                yield current, of_the_day
            current, of_the_day = day, []
        of_the_day.append(row)
    if current is not None:
        yield current, of_the_day


def _previous_attempt(at: datetime) -> datetime:
    """One hour of calling time earlier: nights and weekends are skipped."""
    before = at - _BETWEEN_ATTEMPTS
    if before.hour < _OPENS.seconds // 3600:
        before -= _DAY - (_CLOSES - _OPENS)
        while before.weekday() >= _SATURDAY:
            before -= _DAY
    return before


def _ms(at: datetime) -> int:
    return int(at.timestamp()) * 1000

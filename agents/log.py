"""What a process says on stderr: one line an event, as text or as JSON, and no personal data.

The libraries below us print keys and values of records at DEBUG, so they never get below WARNING.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Literal

import orjson

_LIBRARIES = (
    "faust",
    "mode",
    "aiokafka",
    "kafka",
    "aiohttp",
    "asyncio",
    "callfunnel.agents.view.listener",
    "callfunnel.agents.kafka.recovery",
    "callfunnel.agents.kafka.transport",
    "callfunnel.agents.kafka.tables",
)


_QUIET_SECONDS = 5.0


class _Repeats(logging.Filter):
    """Lets a library say a thing once in a while: an outage is thousands of failed tries."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(_LIBRARIES):
            return True
        thing = record.name, str(record.msg)
        at, more = self._said.get(thing, (0.0, 0))
        if 0 <= record.created - at < _QUIET_SECONDS:
            self._said[thing] = at, more + 1
            return False
        if len(self._said) > 1000:  # a library that writes its values into the template
            self._said.clear()
        self._said[thing] = record.created, 0
        if more:
            record.msg, record.args = f"{record.getMessage()} (and {more} more times)", None
        return True


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def set_up(form: Literal["text", "json"], level: str) -> None:
    """Send the log to stderr in this form, from this level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        _Json() if form == "json" else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")
    )
    handler.addFilter(_Repeats())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for name in _LIBRARIES:
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))

"""What a worker says of the records it rejects: which partition is poisoned, which lead is crowded.

The law: of a record, the log tells its offset, the reason, and the campaign and source that it names, which
the contract lets into metrics. A lead has a pseudonym there.
"""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

from callfunnel.agents.engine.metrics import EngineMetrics
from callfunnel.agents.kafka.microbatch import MicroBatch
from callfunnel.schemas.codec import CROWDED, Rejected
from callfunnel.streams.log import pseudonym
from callfunnel.streams.poison import EXCUSED
from callfunnel.streams.rows import Position

log = logging.getLogger(__name__)

_SENDERS_TOLD = 3
_MOST_BYTES = 65_536
"""Of a value that is looked at for its sender."""

Name = Annotated[str, Meta(min_length=1, max_length=64)]


class _Sender(Struct):
    campaign: Name | None = None
    source: Name | None = None


class Refusals:
    """Tells log and metrics of refused records, for all partitions of a worker."""

    def __init__(self, metrics: EngineMetrics, source: str, dead_letters: str, max_share: float) -> None:
        self._metrics = metrics
        self._source = source
        self._dead_letters = dead_letters
        self._max_share = max_share
        self._crowded: set[bytes] = set()
        """The leads that were told; each has thousands of events in the tables, so there are few."""

    def show(self, partition: int, at: Position) -> None:
        """Set the partition's gauges."""
        self._metrics.rejected_share.labels(self._source, str(partition)).set(at.rejected_share)
        self._metrics.poisoned.labels(self._source, str(partition)).set(at.poison != "none")

    def take_over(self, partition: int, at: Position) -> None:
        """A partition comes to this worker with its past."""
        if at.poison != "none":
            log.warning("%s. %s", self._state(partition, at), self._where(partition))

    def observe(
        self, batch: MicroBatch, rejected: Sequence[tuple[int, Rejected]], before: Position, at: Position
    ) -> None:
        """A batch is committed that moved the position from `before` to `at`."""
        self.show(batch.partition, at)
        reasons = Counter(why.reason for _, why in rejected)
        for lump in batch.lumps:
            reasons[lump.reason] += lump.records
        for reason, n in reasons.items():
            self._metrics.events_rejected.labels(reason).inc(n)
        self._tell_crowded(batch, [i for i, why in rejected if why.reason == CROWDED])
        if before.poison == "none" and at.poison != "none":
            log.error(
                "%s. %s. %s. "
                "Correct what their sender publishes; `callfunnel validate FILE` checks a file of events",
                self._state(batch.partition, at),
                _newest(batch, [(i, why.reason) for i, why in rejected if why.reason not in EXCUSED]),
                self._where(batch.partition),
            )
        elif before.poison != "none" and at.poison == "none":
            log.info(
                "%s/%d is no longer poisoned: %.0f%% of its newest records were rejected",
                *(batch.topic, batch.partition, at.rejected_share * 100),
            )

    def _state(self, partition: int, at: Position) -> str:
        return (
            f"{self._source}/{partition} is poisoned: {at.rejected_share:.0%} of its newest records were "
            f"rejected (CALLFUNNEL_DLQ_MAX_SHARE is {self._max_share:.0%})"
        )

    def _where(self, partition: int) -> str:
        return (
            f"They are in {self._dead_letters}/{partition}, with the reasons in their headers, and missing "
            "from the numbers"
        )

    def _tell_crowded(self, batch: MicroBatch, indices: Iterable[int]) -> None:
        for i in indices:
            lead_id = batch.keys[i] or json.loads(batch.values[i] or b"")["lead_id"].encode()  # as the gate
            if lead_id in self._crowded:
                continue
            self._crowded.add(lead_id)
            self._metrics.crowded_leads.inc()
            log.warning(
                "%s/%d: lead #%s is crowded: it has as many events as one lead may have, and the one at "
                "offset %d is one more. Its further events are rejected as %s, all other leads are counted. "
                "Its id is a placeholder: leave such events out, or give each person an id of their own",
                *(batch.topic, batch.partition, pseudonym(lead_id), batch.offsets[i], CROWDED),
            )


def _newest(batch: MicroBatch, rejected: Sequence[tuple[int, str]]) -> str:
    """What was rejected of the newest batch, why, and whose it was."""
    reasons, senders = Counter[str](), Counter[str]()
    offsets = []
    for i, reason in rejected:
        reasons[reason] += 1
        senders[_sender(batch.values[i])] += 1
        offsets.append(batch.offsets[i])
    for lump in batch.lumps:
        reasons[lump.reason] += lump.records
        senders["unknown"] += lump.records
        offsets += (lump.first, lump.last)
    if not offsets:
        return f"Of the last {batch.records} records, none was"
    return (
        f"Of the last {batch.records} records, {reasons.total()} were, at offsets {min(offsets)} to "
        f"{max(offsets)}; reasons: {_counted(reasons)}; senders: {_counted(senders, _SENDERS_TOLD)}"
    )


def _counted(counts: Counter[str], most: int | None = None) -> str:
    told = [f"{what} ({n})" for what, n in counts.most_common(most)]
    more = len(counts) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def _sender(value: bytes | None) -> str:
    """Campaign and source of a record, as far as it can be read."""
    if value is None or len(value) > _MOST_BYTES:
        return "unknown"
    try:
        named = msgspec.json.decode(value, type=_Sender)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return "unknown"
    parts = [
        f"{what} {name}"
        for what, name in (("campaign", named.campaign), ("source", named.source))
        if name is not None and name.isprintable()
    ]
    return ", ".join(parts) or "unknown"

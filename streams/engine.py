"""One source partition: records in, effects out.

The law here: the state is a fold of the partition's records in offset order, with no clock, no chance and no
other partition in it. `apply` changes the state in memory and returns everything that has to become durable;
whoever calls it writes all of it, in one transaction, or ends the process.

An event counts here if, and only if, this partition is its lead's home under the number of partitions and the
partitioner that the position names. Every other event is sent home, where its copies meet and are known by
their id. Nothing else in a record makes it count.
"""

from collections.abc import Collection, Mapping, Sequence

from msgspec.structs import replace

from callfunnel.schemas.codec import Decoder, Rejected, moment
from callfunnel.schemas.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_position,
    encode_position,
)
from callfunnel.streams.partitioning import homes
from callfunnel.streams.poison import EXCUSED, Tolerance
from callfunnel.streams.tables import Effects, Fold, Tables

MISROUTED = Rejected(
    "misrouted",
    "a worker moved this record (header callfunnel.rerouted), and it is not where these tables count its "
    "lead: do apps with another CALLFUNNEL_PARTITIONER work on the same source?",
)
"""Why an event is refused that is not at home and may not be sent on."""


class Partition:
    """The state of one source partition; the source has so many `partitions`.

    A replay (the clock "event") takes events up to the bound that `decoder` has, or to `begun_ms`, the wall
    time now, where it has none; tables that were begun before have a bound of their own.
    """

    def __init__(
        self,
        number: int,
        partitions: int,
        fold: Fold,
        decoder: Decoder,
        tables: type[Tables] = Tables,
        begun_ms: int | None = None,
        tolerance: Tolerance | None = None,
    ) -> None:
        self.number = number
        self.offset: int | None = None
        """The next source offset to apply; None before the first batch was ever written."""
        until_ms = begun_ms if decoder.limits.until_ms is None else decoder.limits.until_ms
        self.written = Position(
            offset=0,
            watermark_ms=-1,
            fold=fold.id,
            partitions=partitions,
            timezone=fold.timezone,
            days_kept=fold.days_kept,
            replay_until_ms=until_ms if decoder.limits.clock == "event" else None,
        )
        """The position record as it was last made."""
        self._fold = fold
        self._decoder = decoder
        self._new_tables = tables
        self.tables = self._empty()
        self._partitions = partitions
        self._homes = homes(partitions, fold.partitioner, tables.murmur2_of_all)
        self._tolerance = tolerance or Tolerance()

    def _empty(self) -> Tables:
        return self._new_tables(self._fold, self._decoder.until(self.written.replay_until_ms))

    def restore(self, funnel: dict[bytes, bytes], leads: dict[bytes, bytes]) -> None:
        """Take over the rows of the two changelogs; both dicts are consumed.

        Raises `Mismatch` when they do not belong together, or were made by another fold or of a source with
        another number of partitions.
        """
        positions = [
            decode_position(rows.pop(key)) if key in rows else None
            for rows, key in ((funnel, POSITION_KEY), (leads, LEADS_POSITION_KEY))
        ]
        if positions[0] != positions[1]:
            raise Mismatch(
                f"the two changelogs of partition {self.number} do not belong together: "
                f"the funnel's position is {positions[0]}, the leads' is {positions[1]}. One was deleted "
                "or restored without the other, or lost its only copy for a moment amid a commit",
                remedy="rebuild",
            )
        position = positions[0]
        if position is None:
            if funnel or leads:
                raise Mismatch(
                    f"the changelogs of partition {self.number} hold rows but no position: not ours",
                    remedy="count-anew",
                )
            return
        if position.fold != self._fold.id:
            raise Mismatch(
                f"the tables of partition {self.number} were made with other settings of the fold "
                "(hang-up threshold, time zone, retention, partitioner or version): put the old ones back",
                remedy="count-anew",
            )
        if position.partitions not in (0, self._partitions):
            raise Mismatch(
                f"the tables of partition {self.number} were made of a source with "
                f"{position.partitions} partitions, and it has {self._partitions} now: leads have other "
                "home partitions",
                remedy="count-anew",
            )
        self.written = replace(
            position,
            timezone=self._fold.timezone,
            days_kept=self._fold.days_kept,
            replay_until_ms=self._bound(position),
        )
        self.offset = position.offset
        self.tables = self._empty()
        self.tables.restore(funnel, leads)

    def _bound(self, position: Position) -> int | None:
        asked, has = self._decoder.limits.until_ms, position.replay_until_ms
        if self._decoder.limits.clock != "event" or asked is None:
            return has
        if has not in (None, asked):
            raise Mismatch(
                f"the tables of partition {self.number} are of a replay that takes events up to "
                f"{moment(has)}, and CALLFUNNEL_REPLAY_UNTIL says {moment(asked)}: events between the two "
                f"would count or not by when they were read. Set CALLFUNNEL_REPLAY_UNTIL to {moment(has)} or "
                "unset it",
                remedy="count-anew",
            )
        return asked

    @property
    def is_bounded(self) -> bool:
        """Whether there is a moment from which on events are from the future."""
        return self._decoder.limits.clock == "wall" or self.written.replay_until_ms is not None

    def made_from(self, topic: str, topic_id: str) -> None:
        """The topic that the records are of; positions name it from the next one on."""
        self.written = replace(self.written, topic=topic, topic_id=topic_id)

    def lose(self, until: int, now_ms: int) -> None:
        """Go on at source offset `until`: what lies before it was gone at `now_ms`."""
        lost = self.written.lost + until - (self.offset or 0)
        self.written = replace(self.written, lost=lost, lost_at_ms=now_ms)
        self.offset = until

    def apply(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        end: int,
        stuck: Collection[int] = (),
        unreadable: int = 0,
        witness: Witness | None = None,
    ) -> Effects:
        """Fold the records up to (not including) source offset `end`.

        `timestamps` are the records' own, in ms. `stuck` are the indices of records that must not be sent on
        (`agents.engine.rerouting` says which): those that are not at home are refused. So many more records
        among them were `unreadable`. `witness` is the last of the records that came whole; without one, that
        of before stays. Without records, nothing but the position is written.
        """
        verdicts = self.tables.decode(values, keys, timestamps)
        if self._homes is None and stuck:  # at home where they were published, and that is not here
            self.tables.refuse(verdicts, stuck, MISROUTED)
        before = self.written
        away = self.away(self.tables.new_leads(verdicts, keys))
        effects = self.tables.add(verdicts, keys, timestamps, away, before.watermark_ms)
        if stuck and effects.foreign:
            _refuse_to_send(effects, stuck)
        rejected, foreign, duplicates = len(effects.rejected), len(effects.foreign), effects.duplicates
        poison = [i for i, why in effects.rejected if why.reason not in EXCUSED]
        poison += range(len(values), len(values) + unreadable)
        share = self._tolerance.share(before.rejected_share, len(values) + unreadable, poison)
        self.offset = end
        self.written = replace(
            before,
            offset=end,
            watermark_ms=effects.watermark_ms,
            witness=witness or before.witness,
            applied=before.applied + len(values) - rejected - foreign - duplicates,
            duplicates=before.duplicates + duplicates,
            rejected=before.rejected + rejected + unreadable,
            rerouted=before.rerouted + foreign,
            partitions=self._partitions,
            rejected_share=share,
            poison=self._tolerance.poison(before.poison, share),
        )
        position = encode_position(self.written)
        effects.funnel.append((POSITION_KEY, position))
        effects.leads.append((LEADS_POSITION_KEY, position))
        return effects

    def accept_poison(self) -> None:
        """An operator wants this poisoned partition to go on; from the next batch on its position says so."""
        self.written = replace(self.written, poison="accepted")

    def away(self, lead_ids: Collection[bytes]) -> Mapping[bytes, int]:
        """Those of the leads that are at home elsewhere, and where."""
        if self._homes is None:
            return {}
        return {lead_id: home for lead_id, home in self._homes(lead_ids).items() if home != self.number}


def _refuse_to_send(effects: Effects, stuck: Collection[int]) -> None:
    refused = [(i, MISROUTED) for i, _ in effects.foreign if i in stuck]
    effects.foreign = [one for one in effects.foreign if one[0] not in stuck]
    effects.rejected = sorted(effects.rejected + refused, key=lambda rejection: rejection[0])


class Mismatch(Exception):
    """The changelogs cannot be taken over: the message says what is wrong, `remedy` what builds new tables
    (an id of `agents.remedies`)."""

    def __init__(self, told: str, *, remedy: str) -> None:
        super().__init__(told)
        self.remedy = remedy

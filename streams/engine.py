"""One source partition: records in, effects out.

The law here: the state is a fold of the partition's records in offset order, with no clock, no chance and no
other partition in it. `apply` changes the state in memory and returns everything that has to become durable;
whoever calls it writes all of it, in one transaction, or ends the process.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from schemas.codec import Decoder, moment
from schemas.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_position,
    encode_position,
)
from streams.partitioning import Homes
from streams.tables import Effects, Fold, Tables, Verdict


class Partition:
    """The state of one source partition.

    A replay (the clock "event") takes events up to the bound that `decoder` has, or to `begun_ms`, the wall
    time now, where it has none; tables that were begun before have a bound of their own.
    """

    def __init__(
        self,
        number: int,
        fold: Fold,
        decoder: Decoder,
        homes: Homes | None,
        tables: type[Tables] = Tables,
        begun_ms: int | None = None,
    ) -> None:
        self.number = number
        self.offset: int | None = None
        """The next source offset to apply; None before the first batch was ever written."""
        until_ms = begun_ms if decoder.limits.until_ms is None else decoder.limits.until_ms
        self.written = Position(
            offset=0,
            watermark_ms=-1,
            fold=fold.id,
            timezone=fold.timezone,
            days_kept=fold.days_kept,
            replay_until_ms=until_ms if decoder.limits.clock == "event" else None,
        )
        """The position record as it was last made."""
        self._fold = fold
        self._decoder = decoder
        self._new_tables = tables
        self.tables = self._empty()
        self._homes = homes

    def _empty(self) -> Tables:
        return self._new_tables(self._fold, self._decoder.until(self.written.replay_until_ms))

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
                "or restored without the other, or lost its only copy for a moment amid a commit: delete "
                "both to rebuild from the source topic, or use a new app id."
            )
        position = positions[0]
        if position is None:
            if funnel or leads:
                raise Mismatch(
                    f"the changelogs of partition {self.number} hold rows but no position: not ours"
                )
            return
        if position.fold != self._fold.id:
            raise Mismatch(
                f"the tables of partition {self.number} were made with other settings of the fold "
                "(hang-up threshold, time zone, retention, partitioner or version): put the old settings "
                "back, or use a new app id to build new tables from the source topic."
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
                "unset it, or use a new app id to build new tables from the source topic."
            )
        return asked

    @property
    def is_bounded(self) -> bool:
        """Whether there is a moment from which on events are from the future."""
        return self._decoder.limits.clock == "wall" or self.written.replay_until_ms is not None

    def made_from(self, topic: str, topic_id: str) -> None:
        """The topic that the records are of; positions name it from the next one on."""
        self.written = replace(self.written, topic=topic, topic_id=topic_id)

    def apply(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        rerouted: Sequence[bool] | None,
        end: int,
        last: int | None = None,
    ) -> Effects:
        """Fold the records up to (not including) source offset `end`; `last` is the last one's, or end - 1.

        `timestamps` are the records' own, in ms. `rerouted` marks records that were already sent home once:
        they are applied wherever they are. Without records, nothing but the position is written.
        """
        verdicts = self.tables.decode(values, keys, timestamps)
        before = self.written
        away = self._away(verdicts, keys)
        effects = self.tables.add(verdicts, keys, timestamps, rerouted, away, before.watermark_ms)
        rejected, foreign, duplicates = len(effects.rejected), len(effects.foreign), effects.duplicates
        self.offset = end
        if values:
            last = end - 1 if last is None else last
            witness = Witness.of(last, timestamps[-1], keys[-1], values[-1])
        self.written = replace(
            before,
            offset=end,
            watermark_ms=effects.watermark_ms,
            witness=witness if values else before.witness,
            applied=before.applied + len(values) - rejected - foreign - duplicates,
            duplicates=before.duplicates + duplicates,
            rejected=before.rejected + rejected,
            rerouted=before.rerouted + foreign,
        )
        position = encode_position(self.written)
        effects.funnel.append((POSITION_KEY, position))
        effects.leads.append((LEADS_POSITION_KEY, position))
        return effects

    def _away(self, verdicts: Sequence[Verdict], keys: Sequence[bytes | None]) -> Mapping[bytes, int]:
        """The leads that are new here and at home elsewhere, and where."""
        if self._homes is None:
            return {}
        homes = self._homes(self.tables.new_leads(verdicts, keys))
        return {lead_id: home for lead_id, home in homes.items() if home != self.number}


class Mismatch(Exception):
    """The changelogs cannot be taken over; the message says what is wrong and what to do."""

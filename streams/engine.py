"""One source partition: records in, effects out.

The law here: the state is a fold of the partition's records in offset order, with no clock, no chance and no
other partition in it. `apply` changes the state in memory and returns everything that has to become durable;
whoever calls it writes all of it, in one transaction, or ends the process.

An event counts here if, and only if, this partition is its lead's home under the number of partitions and the
partitioner that the position names. Every other event is sent home, where its copies meet and are known by
their id. Nothing else in a record makes it count.
"""

from collections.abc import Collection, Mapping, Sequence

from schemas.codec import Decoder, Rejected
from schemas.rows import LEADS_POSITION_KEY, POSITION_KEY, Position, decode_position, encode_position
from streams.partitioning import homes
from streams.tables import Effects, Fold, Tables

MISROUTED = Rejected(
    "misrouted",
    "a worker moved this record (header callfunnel.rerouted), and it is not where these tables count its "
    "lead: do apps with another CALLFUNNEL_PARTITIONER work on the same source?",
)
"""Why an event is refused that is not at home and may not be sent on."""


class Partition:
    """The state of one source partition; the source has so many `partitions`."""

    def __init__(
        self,
        number: int,
        partitions: int,
        fold: Fold,
        decoder: Decoder,
        tables: type[Tables] = Tables,
    ) -> None:
        self.number = number
        self.offset: int | None = None
        """The next source offset to apply; None before the first batch was ever written."""
        self.written = Position(offset=0, watermark_ms=-1, fold=fold.id, partitions=partitions)
        """The position record as it was last made."""
        self.tables = tables(fold, decoder)
        self._partitions = partitions
        self._fold_id = fold.id
        self._homes = homes(partitions, fold.partitioner, tables.murmur2_of_all)

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
                "or restored without the other, or lost its only copy for a moment amid a commit: delete "
                "both to rebuild from the source topic, or use a new app id."
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
        if positions[0].partitions not in (0, self._partitions):
            raise Mismatch(
                f"the tables of partition {self.number} were made of a source with "
                f"{positions[0].partitions} partitions, and it has {self._partitions} now: leads have other "
                "home partitions. Use a new app id to build new tables from the source topic."
            )
        self.written = positions[0]
        self.offset = positions[0].offset
        self.tables.restore(funnel, leads)

    def apply(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        end: int,
        stuck: Collection[int] = (),
    ) -> Effects:
        """Fold the records up to (not including) source offset `end`.

        `timestamps` are the records' own, in ms. `stuck` are the indices of records that must not be sent on
        (`agents.rerouting` says which): those that are not at home are refused.
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
        self.offset = end
        self.written = Position(
            offset=end,
            watermark_ms=effects.watermark_ms,
            fold=self._fold_id,
            applied=before.applied + len(values) - rejected - foreign - duplicates,
            duplicates=before.duplicates + duplicates,
            rejected=before.rejected + rejected,
            rerouted=before.rerouted + foreign,
            partitions=self._partitions,
        )
        position = encode_position(self.written)
        effects.funnel.append((POSITION_KEY, position))
        effects.leads.append((LEADS_POSITION_KEY, position))
        return effects

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
    """The changelogs cannot be taken over; the message says what is wrong and what to do."""

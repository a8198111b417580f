"""One source partition: records in, effects out.

The law here: the state is a fold of the partition's records in offset order, with no clock, no chance and no
other partition in it. `apply` changes the state in memory and returns everything that has to become durable;
whoever calls it writes all of it, in one transaction, or ends the process.
"""

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from schemas.codec import CROWDED, Decoder
from schemas.rows import LEADS_POSITION_KEY, POSITION_KEY, Position, decode_position, encode_position
from streams.partitioning import Homes
from streams.poison import Tolerance
from streams.tables import Effects, Fold, Tables, Verdict


class Partition:
    """The state of one source partition."""

    def __init__(
        self,
        number: int,
        fold: Fold,
        decoder: Decoder,
        homes: Homes | None,
        tables: type[Tables] = Tables,
        tolerance: Tolerance | None = None,
    ) -> None:
        self.number = number
        self.offset: int | None = None
        """The next source offset to apply; None before the first batch was ever written."""
        self.written = Position(offset=0, watermark_ms=-1, fold=fold.id)
        """The position record as it was last made."""
        self.tables = tables(fold, decoder)
        self._fold_id = fold.id
        self._homes = homes
        self._tolerance = tolerance or Tolerance()

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
        self.written = positions[0]
        self.offset = positions[0].offset
        self.tables.restore(funnel, leads)

    def apply(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        rerouted: Sequence[bool] | None,
        end: int,
    ) -> Effects:
        """Fold the records up to (not including) source offset `end`.

        `timestamps` are the records' own, in ms. `rerouted` marks records that were already sent home once:
        they are applied wherever they are.
        """
        verdicts = self.tables.decode(values, keys, timestamps)
        before = self.written
        away = self._away(verdicts, keys)
        effects = self.tables.add(verdicts, keys, timestamps, rerouted, away, before.watermark_ms)
        rejected, foreign, duplicates = len(effects.rejected), len(effects.foreign), effects.duplicates
        poison = [i for i, why in effects.rejected if why.reason != CROWDED]
        share = self._tolerance.share(before.rejected_share, len(values), poison)
        self.offset = end
        self.written = Position(
            offset=end,
            watermark_ms=effects.watermark_ms,
            fold=self._fold_id,
            applied=before.applied + len(values) - rejected - foreign - duplicates,
            duplicates=before.duplicates + duplicates,
            rejected=before.rejected + rejected,
            rerouted=before.rerouted + foreign,
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

    def _away(self, verdicts: Sequence[Verdict], keys: Sequence[bytes | None]) -> Mapping[bytes, int]:
        """The leads that are new here and at home elsewhere, and where."""
        if self._homes is None:
            return {}
        homes = self._homes(self.tables.new_leads(verdicts, keys))
        return {lead_id: home for lead_id, home in homes.items() if home != self.number}


class Mismatch(Exception):
    """The changelogs cannot be taken over; the message says what is wrong and what to do."""

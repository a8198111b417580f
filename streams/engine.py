"""One source partition: records in, effects out.

The law here: the state is a fold of the partition's records in offset order, with no clock, no chance and no
other partition in it. `apply` changes the state in memory and returns everything that has to become durable;
whoever calls it writes all of it, in one transaction, or ends the process.

An event counts here if, and only if, this partition is its lead's home under the number of partitions and the
partitioner that the position names. Every other event is sent home, where its copies meet and are known by
their id. Nothing else in a record makes it count.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from callfunnel.schemas.codec import Decoder, Rejected, moment
from callfunnel.streams.archive import BaseRows, Memory
from callfunnel.streams.by_definition import DefinedTables
from callfunnel.streams.fold import Fold
from callfunnel.streams.panes import Bounds
from callfunnel.streams.partitioning import homes
from callfunnel.streams.poison import EXCUSED, Tolerance
from callfunnel.streams.records import Store
from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_position,
    encode_position,
    of_others,
)
from callfunnel.streams.tables import Effects, Tables

LOOKED_AT = 1_000
"""So many leads at least are looked at with each batch, while there may be some to archive."""

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
        tables: type[Tables] = DefinedTables,
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
            settings=fold,
        )
        """The position record as it was last made."""
        self._fold = fold
        self._decoder = decoder
        self._new_tables = tables
        self.tables = self._empty()
        self._partitions = partitions
        self._homes = homes(partitions, fold.partitioner, tables.murmur2_of_all)
        self._tolerance = tolerance or Tolerance()
        self._logs: Store = tables.store_type()
        """The logs that are not counted yet, while the rows are derived."""
        self._in_force: list[bytes] = []
        """The keys of the rows in force, while others are derived."""
        self._superseded: list[bytes] = []
        """The keys of rows that are not in force and not deleted yet."""
        self._memory = Memory.of(fold, decoder.limits)
        self.base = BaseRows({})
        self._archiving: int | None = None
        """Where to go on looking for leads to archive; None: there are none."""

    def _empty(self, generation: int = 0) -> Tables:
        return self._new_tables(self._fold, self._decoder.until(self.written.replay_until_ms), generation)

    def restore(self, funnel: Store, leads: Store) -> None:
        """Take over the rows of the two changelogs; both stores are consumed.

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
            if len(funnel) or len(leads):
                raise Mismatch(
                    f"the changelogs of partition {self.number} hold rows but no position: not ours",
                    remedy="count-anew",
                )
            return
        is_ours = position.fold == self._fold.id
        if not is_ours:
            self._check_that_rows_can_follow(position)
        if position.partitions not in (0, self._partitions):
            raise Mismatch(
                f"the tables of partition {self.number} were made of a source with "
                f"{position.partitions} partitions, and it has {self._partitions} now: leads have other "
                "home partitions",
                remedy="count-anew",
            )
        self.written = replace(position, replay_until_ms=self._bound(position))
        self.offset = position.offset
        others = {key: funnel.pop(key) for key in of_others(funnel, position.generation)}
        self.base = BaseRows(others)
        self._superseded = list(others)
        self._archiving = 0 if position.horizon_ms else None
        if is_ours:
            self.written = replace(
                self.written,
                timezone=self._fold.timezone,
                days_kept=self._fold.days_kept,
                settings=self._fold,
            )
            self.tables = self._empty(position.generation)
            self.tables.restore(funnel, leads)
        else:
            self.tables = self._empty(position.generation + 1)
            self._logs = leads
            self._in_force = list(funnel)

    def _check_that_rows_can_follow(self, position: Position) -> None:
        """The tables are of another fold: raises `Mismatch` unless its rows follow from the logs."""
        made = position.settings
        if made is None:
            raise Mismatch(
                f"the tables of partition {self.number} were made by a version of callfunnel that kept no "
                "logs of leads: this one has to count them once from the source",
                remedy="count-anew",
            )
        if made.partitioner != self._fold.partitioner:
            raise Mismatch(
                f"the tables of partition {self.number} were made with the partitioner {made.partitioner}, "
                f"and CALLFUNNEL_PARTITIONER says {self._fold.partitioner}: leads have other home "
                f"partitions. Set it to {made.partitioner} again, or count anew",
                remedy="count-anew",
            )
        if self._fold.id in position.replaced:
            raise Mismatch(
                f"the rows of partition {self.number} were made with these settings of the fold before, and "
                "have been derived anew with others since: does a worker with former settings still run? "
                f"Now they are {_told(made)}",
                remedy="fold-adopt",
            )

    # Rows follow from logs: what a worker does where its fold is another than that of the tables. Each part
    # is written with the position in both changelogs, and the rows in force stay in force until `turn`.

    @property
    def is_of_another_fold(self) -> bool:
        """Whether the rows in force are of another fold than this one's: then they are derived anew first."""
        return self.written.fold != self._fold.id

    @property
    def change(self) -> str:
        """From which settings of the fold to which, for a log."""
        before, after = self.written.settings, self._fold
        return f"{_told(before, after)} to {_told(after, before)}" if before else ""

    def derive(self, most: int) -> int:
        """Count up to so many logs; how many are left then."""
        self.tables.derive(self._logs, most, self._bounds)
        return len(self._logs)

    def derived(self, most: int) -> Iterator[Effects]:
        """The rows that were derived, in parts of so many."""
        records = self.tables.records()
        for start in range(0, len(records), most):
            yield self._part(records[start : start + most])

    def turn(self) -> Effects:
        """From here on the derived rows are in force."""
        before, fold = self.written, self._fold
        self.written = replace(
            before,
            fold=fold.id,
            settings=fold,
            timezone=fold.timezone,
            days_kept=fold.days_kept,
            generation=before.generation + 1,
            replaced=(*(other for other in before.replaced if other != before.fold), before.fold),
        )
        self._superseded, self._in_force = self._in_force, []
        return self._part([])

    def sweep(self, most: int) -> Effects | None:
        """Delete up to so many rows that are not in force; None where there are none."""
        if not self._superseded:
            return None
        some, self._superseded = self._superseded[:most], self._superseded[most:]
        return self._part([(key, None) for key in some])

    def _part(self, rows: Sequence[tuple[bytes, bytes | None]]) -> Effects:
        self.written = replace(self.written, parts=self.written.parts + 1)
        position = encode_position(self.written)
        return Effects(
            funnel=[*rows, (POSITION_KEY, position)],
            leads=[(LEADS_POSITION_KEY, position)],
            rejected=[],
            foreign=[],
            watermark_ms=self.written.watermark_ms,
        )

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
        effects = self._add(verdicts, keys, timestamps, away)
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
            horizon_ms=effects.horizon_ms,
            witness=witness or before.witness,
            applied=before.applied + len(values) - rejected - foreign - duplicates,
            duplicates=before.duplicates + duplicates,
            conflicting=before.conflicting + effects.conflicting,
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

    def _add(
        self,
        verdicts: Any,
        keys: Sequence[bytes | None],
        timestamps: Sequence[int],
        away: Mapping[bytes, int],
    ) -> Effects:
        """Take in a batch in parts: an event that moves the horizon is the last of its part.

        So it makes no difference how records are cut into batches.
        """
        position, stop = self.written, 0
        # Another retention, or tables of before there was a horizon, move it before the first record.
        horizon_ms = self._memory.horizon_ms(position.horizon_ms, position.watermark_ms)
        bounds = Bounds(position.watermark_ms, horizon_ms)
        effects = Effects([], [], [], [], bounds.watermark_ms)
        while True:
            start, stop = stop, len(keys)
            moves_at_ms = self._memory.moves_at_ms(bounds.horizon_ms)
            if moves_at_ms is not None:
                moves = self.tables.first_at(verdicts, keys, away, moves_at_ms, start)
                stop = stop if moves is None else moves + 1
            effects.extend(self.tables.add(verdicts, keys, timestamps, away, bounds, range(start, stop)))
            horizon_ms = self._memory.horizon_ms(bounds.horizon_ms, effects.watermark_ms)
            bounds = Bounds(effects.watermark_ms, horizon_ms)
            if stop == len(keys):
                break
        if bounds.horizon_ms > position.horizon_ms:
            self._archiving = 0
        if self._archiving is not None:
            most = max(LOOKED_AT, 2 * len(keys))
            some, self._archiving = self.tables.archive(self._archiving, most, bounds)
            effects.extend(some)
        effects.horizon_ms = bounds.horizon_ms
        effects.funnel += self.base.add(self._fold.id, effects.archived)
        return effects

    @property
    def _bounds(self) -> Bounds:
        return Bounds(self.written.watermark_ms, self.written.horizon_ms)

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


def _told(fold: Fold, beside: Fold | None = None) -> str:
    """The settings of a fold in words; beside another one, those that differ."""
    other = _settings(beside) if beside else {}
    told = {name: value for name, value in _settings(fold).items() if other.get(name) != value}
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _settings(fold: Fold) -> dict[str, str]:
    return {
        "hang-up threshold": f"{fold.hangup_ms} ms",
        "time zone": fold.timezone,
        "most events of a lead": str(fold.lead_events),
        "events known for": f"{fold.event_days} d",
        **{f"{each.name} rows kept for": f"{each.kept} s" for each in fold.resolutions if each.kept},
        "version": str(fold.version),
    }


class Mismatch(Exception):
    """The changelogs cannot be taken over: the message says what is wrong, `remedy` what builds new tables
    (an id of `agents.remedies`)."""

    def __init__(self, told: str, *, remedy: str) -> None:
        super().__init__(told)
        self.remedy = remedy

"""Decides what Kafka left undecided (see `agents.kafka.hanging`) of the partitions that a worker takes over.

Which part of a transaction never heard how it ended, and what is done with it:
* one changelog: what the other one has is committed, what it has not is aborted;
* both changelogs: committed where a dead letter of it is, aborted otherwise, and done again;
* both changelogs, of two transactions in a row: the first is committed, the second aborted;
* dead letters: of what the tables have counted, committed; of what will be read again, aborted;
* rerouted events: committed. Told twice, they count once.
Where the changelogs contradict each other in another way, nothing is touched there, and `Mismatch` tells.
"""

import asyncio
import logging
from collections.abc import Collection, Iterable, Mapping
from functools import partial

from callfunnel.agents.engine.deadletter import CONNECTOR, OFFSET, source_offset
from callfunnel.agents.engine.rerouting import REROUTED
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.errors import Mended, TablesWrong
from callfunnel.agents.kafka.hanging import At, Tail
from callfunnel.agents.remedies import REMEDIES
from callfunnel.streams.rows import decode_position

log = logging.getLogger(__name__)

TIMES = 3
"""The marker that decides may be left out as the one before it was."""

Positions = Mapping[At, tuple[bytes, bytes | None]]
"""By changelog: the key of the position, and its committed value."""


class InDoubt:
    """What a worker finds undecided where it takes partitions over: look, judge, decide, tell."""

    def __init__(
        self,
        transactions: Transactions,
        app_id: str,
        source: str,
        dead_letters: str,
        partitions: Iterable[int],
    ) -> None:
        self._transactions = transactions
        self._source = source
        self._dead_letters = dead_letters
        self._letter = partial(source_offset, app_id=app_id)
        self._hanging: Mapping[At, Tail] = {}
        self._last_letters: dict[int, int | None] = {}
        """The source offsets of the last committed ones, where they have the say."""
        self._verdicts: dict[int, dict[At, bool]] = {number: {} for number in partitions}
        """Of the producer of each partition: what to commit (True) and what to abort.

        Dead letters are always among it, for whoever ends nothing over them is told whether it is the owner;
        but they are left alone where they hang and were not judged.
        """
        self._decisive: set[At] = set()
        """What hangs of changelogs and dead letters and was judged."""
        self._left: Collection[At] = ()

    async def look(self, source: Iterable[At], changelogs: Collection[At]) -> None:
        """Ask what hangs: in all of the source, where any of these partitions may have sent events to."""
        if not self._verdicts:
            return
        asked = [*source, *changelogs, *((self._dead_letters, number) for number in self._verdicts)]
        self._hanging = await self._transactions.hanging(asked, {REROUTED, OFFSET, CONNECTOR})
        rerouted = [at for at, tail in self._hanging.items() if self._is_rerouted(at, tail)]
        for number, its in self._verdicts.items():
            letters = self._dead_letters, number
            if letters not in self._hanging:
                # noida-db 0.2.3 refuses an empty commit, for ever, where this producer has aborted records.
                its[letters] = False
            its |= dict.fromkeys(rerouted, True)
            if all(at in self._hanging for at in changelogs if at[1] == number):
                self._last_letters[number] = await self._transactions.last(letters, self._letter)

    def _is_rerouted(self, at: At, tail: Tail) -> bool:
        return at[0] == self._source and any(REROUTED in dict(headers) for headers in tail.headers)

    def judge(self, number: int, positions: Positions) -> None:
        """Find the verdicts on a partition by the positions in its changelogs."""
        its, letters = self._verdicts[number], (self._dead_letters, number)
        rows = [row for _, row in positions.values() if row is not None]
        counted = max((decode_position(row).offset for row in rows), default=0)
        if letters in self._hanging:
            about = [self._letter(headers) for headers in self._hanging[letters].headers]
            ours = [offset for offset in about if offset is not None]
            # The first record hangs. Is it another app's, then the last of ours does, if any: those before it
            # may have been decided long ago.
            its[letters] = not ours or ours[0 if about[0] is not None else -1] < counted
            if ours:
                self._decisive.add(letters)
        of_changelogs = self._were_committed(number, positions, counted)
        its |= of_changelogs
        self._decisive |= of_changelogs.keys() & self._hanging.keys()

    def _were_committed(self, number: int, positions: Positions, counted: int) -> Mapping[At, bool]:
        """By changelog, whether what hangs there is of a committed transaction; empty when they do not tell.

        The position is the last row of a transaction: where another one is last, not all of it is there.
        """
        if not positions.keys() & self._hanging.keys():
            return {}
        one, other = positions
        tails = {at: self._hanging.get(at) for at in positions}
        ends = {at: tail.value for at, tail in tails.items() if tail and tail.key == positions[at][0]}
        if positions[one][1] == positions[other][1]:
            letter, end = self._last_letters.get(number), ends.get(one)
            was_committed = (
                letter is not None
                and end is not None
                and end == ends.get(other)
                and counted <= letter < decode_position(end).offset
            )
            return dict.fromkeys(positions, was_committed)
        for behind, ahead in ((one, other), (other, one)):
            if ends.get(behind) == positions[ahead][1] is not None:
                # What hangs in the other one, too, is of a later transaction, of which this one has nothing.
                return {at: at == behind or ahead not in self._hanging for at in positions}
        return {}

    async def decide(self) -> None:
        """End by empty transactions what hangs.

        Raises `TakenOver` when another worker owns one of the partitions by now. What a former owner reads
        is no evidence of anything: the new owner may be in the middle of a commit.
        """
        self._left = self._decisive
        for _ in range(TIMES):
            await self._end()
            if not self._left:
                return
            await self._end()  # begins when the markers of the one before it are there
            self._left = await self._transactions.hanging(self._left)
        await self._end()

    async def _end(self) -> None:
        ended = await asyncio.gather(
            *[
                self._transactions.end_nothing(number, [at for at in its if its[at] is commit], commit=commit)
                for number, its in self._verdicts.items()
                for commit in sorted(set(its.values()))
            ],
            return_exceptions=True,  # none is left halfway because another one failed
        )
        for failure in filter(None, ended):
            raise failure

    def tell(self) -> None:
        """What was decided in a changelog was not restored: it ends the process, by `Mended`.

        Raises `TablesWrong` where it could not be decided.
        """
        decided = {}
        for topic, number in sorted(self._decisive):
            how = "committed" if self._verdicts[number][topic, number] else "aborted"
            if topic != self._dead_letters:
                decided[number] = how
                if (topic, number) in self._left:
                    raise TablesWrong(
                        f"{topic}/{number} ends with a part of a transaction that has to be {how}, and "
                        f"{TIMES} times it was in vain: its producer is forgotten, as it seems. To build the "
                        f"tables anew, {REMEDIES['rebuild']}."
                    )
            elif (topic, number) in self._left:
                log.error("%s/%s: nobody reads past what Kafka left undecided: not %s", topic, number, how)
            else:
                log.warning("%s/%s: Kafka had left dead letters undecided: %s", topic, number, how)
        if decided:
            raise Mended(
                "Kafka had left the last transaction undecided in a changelog of "
                + ", ".join(f"partition {number} ({verdict})" for number, verdict in decided.items())
                + ": it is decided now; start again"
            )

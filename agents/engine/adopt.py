"""What an operator may let the tables do: go on with another topic, go back to a fold that was replaced.

The law: nothing is changed before the witness of every partition was found in the new topic. Then each
partition's position is written by its only writer, to both changelogs in one transaction: what is adopted
when this is killed stays adopted, and the next run goes on with the rest.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from aiokafka.errors import KafkaError
from msgspec import Struct
from msgspec.structs import replace

from callfunnel.agents.config import Settings
from callfunnel.agents.engine.source import COUNT_ANEW, GONE, Found, OtherTopic, Source, resume_at, witnessed
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.errors import Failure, Mended, TablesWrong, TakenOver
from callfunnel.agents.kafka.changelog import last_positions
from callfunnel.agents.kafka.connection import aiokafka_options
from callfunnel.agents.kafka.read_committed import repair
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from callfunnel.streams.fold import Fold
from callfunnel.streams.rows import (
    LEADS_POSITION_KEY,
    POSITION_KEY,
    Position,
    Witness,
    decode_position,
    encode_position,
)


class Adopted(Struct, frozen=True):
    """What became of a partition: its position before, and after where something had to be done."""

    number: int
    old: Position | None
    new: Position | None


@asynccontextmanager
async def writing(settings: Settings, rights: str) -> AsyncIterator[tuple[Transactions, Mapping[str, Any]]]:
    """Gives a command its transactions, and the connection options for other Kafka clients.

    Raises `Failure` where the brokers do not answer, or do not give the client these rights.
    """
    repair()
    client = aiokafka_options(settings)
    transactions = Transactions(
        settings.app_id, client, settings.transaction_timeout_seconds, settings.changelog_compression
    )
    try:
        yield transactions, client
    except (KafkaError, TimeoutError) as error:
        raise Failure(
            f"Kafka at {settings.broker} does not answer: {error!r}. Check the brokers and the permission to "
            f"{rights}, then run this again: it goes on."
        ) from error
    finally:
        await transactions.close()


async def adopt(
    transactions: Transactions,
    source: Source,
    client: Mapping[str, Any],
    app_id: str,
    count: int,
    *,
    only_compare: bool = False,
    tell: Callable[[Adopted], object] = lambda _: None,
) -> None:
    """Let the tables of `app_id` go on with `source`, which has `count` partitions; `tell` of each one.

    Takes the partitions from every worker that has them. Raises `TablesWrong` where the records are not the
    same, `TakenOver` when a worker took a partition back, `Mended` when a changelog must be put right first.
    """
    keys = _position_keys(app_id)
    if not only_compare:
        await _own(transactions, keys, count)
    rows = [await last_positions(client, topic, key, range(count)) for topic, key in keys.items()]
    for number in range(count) if not only_compare else ():  # a worker may be at work between the two
        if rows[0][number] != rows[1][number]:
            raise TablesWrong(
                f"the two changelogs of partition {number} do not belong together: start a worker, which "
                "says what to do. Nothing was changed."
            )
    held = {number: None if row is None else decode_position(row) for number, row in rows[0].items()}
    found = await source.found(range(count))
    records = await witnessed(source, held, found)
    changes, wrong = [], []
    for number, old in held.items():
        try:
            changes.append(
                Adopted(number, old, old and _adopted(number, old, found[number], records.get(number)))
            )
        except OtherTopic as error:
            wrong.append(error.told)
    if wrong:
        told = "\n".join(["The tables cannot go on with this topic. Nothing was changed.", *wrong])
        raise TablesWrong(f"{told}\n{COUNT_ANEW}")
    for change in changes:
        if change.new is not None and not only_compare:
            await _write(transactions, keys, change.number, encode_position(change.new))
        tell(change)


def _position_keys(app_id: str) -> Mapping[str, bytes]:
    return {funnel_changelog(app_id): POSITION_KEY, leads_changelog(app_id): LEADS_POSITION_KEY}


async def _own(transactions: Transactions, topics: Iterable[str], count: int) -> None:
    await transactions.own(range(count))
    undecided = await transactions.hanging([(topic, number) for topic in topics for number in range(count)])
    if undecided:
        raise Mended(
            f"Kafka left the end of a transaction undecided in {_names(undecided)}. Start one worker, "
            "which decides it, and run this again. Nothing was changed."
        )


def _adopted(number: int, old: Position, found: Found, record: Witness | None) -> Position | None:
    """The position that names the topic; None when it does already. Raises `OtherTopic`."""
    witness = old.witness
    if (old.topic, old.topic_id) == (found.topic, found.topic_id):
        resume_at(number, old, found, record)
        return None
    if witness is None:
        offset = resume_at(number, old, found, record)
    elif record == witness:
        offset = witness.offset + 1  # what followed was no record of its topic; in this one it may be one
    else:
        held = found.offsets
        there = f"(offset {witness.offset}) is another one"
        if witness.offset not in held or record == GONE:
            there = f"(offset {witness.offset}) is not there: offsets {held.start} to {held.stop - 1} are"
        raise OtherTopic(
            f"{found.topic}/{number}: the last record that the tables took in {there}",
            COUNT_ANEW,
        )
    return replace(old, offset=offset, topic=found.topic, topic_id=found.topic_id)


def _names(partitions: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{topic}/{number}" for topic, number in sorted(partitions))


async def _write(transactions: Transactions, keys: Mapping[str, bytes], number: int, data: bytes) -> None:
    try:
        await transactions.write(
            number, {(topic, number): [((key, data), [], None)] for topic, key in keys.items()}
        )
    except TakenOver as error:
        raise TakenOver(
            f"a worker took partition {number} over meanwhile: stop all workers, then run this again. What "
            "is adopted stays adopted."
        ) from error


async def adopt_fold(
    transactions: Transactions, client: Mapping[str, Any], app_id: str, count: int, fold: Fold
) -> list[int]:
    """Let workers with this fold derive the rows anew, although others replaced it; in which partitions.

    Takes these partitions from every worker that has them. Raises as `adopt`.
    """
    keys = _position_keys(app_id)
    await _own(transactions, keys, count)
    rows = await last_positions(client, funnel_changelog(app_id), POSITION_KEY, range(count))
    changed = []
    for number, row in rows.items():
        position = None if row is None else decode_position(row)
        if position is None or fold.id not in position.replaced:
            continue
        others = tuple(other for other in position.replaced if other != fold.id)
        await _write(transactions, keys, number, encode_position(replace(position, replaced=others)))
        changed.append(number)
    return changed

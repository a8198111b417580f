"""What happens to the topics: made anew, cut off, deleted, of another size.

The promise: exact, or an end with a code and a reason, and the exact number of what nobody could read. Never
silent.
"""

import json
import struct
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import NewPartitions
from e2e.prometheus import Prometheus
from msgspec.structs import replace

from callfunnel.agents import exit_codes
from callfunnel.agents.kafka import topics
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from faults.lab import Lab, Size, configure
from faults.run import PARTITIONS, Run, Slot
from faults.verify import Reader, Verdict
from grafana import build, check
from integration.workers import callfunnel, variables
from patience import Deadline

Act = Callable[[Run, Slot, list[int]], None]


def _case(act: Act) -> Callable[[Lab, str, int, Size], tuple[Verdict, dict[str, Any]]]:
    """A third of the stream is counted, then `act`, with a worker that runs; then the rest, and the verdict.

    `act` leaves the worker running, or stopped for good when the promise is an end. It adds to the list the
    places of records that nobody could read.
    """

    def plan(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
        with lab.run(name, seed=seed, events=size.events, workers=1) as run:
            run.start_workers()
            publish(run, size.events // 3)
            counted(run)
            unread: list[int] = []
            act(run, run.slots[0], unread)
            if not run.slots[0].wanted:  # an end with a reason was the promise
                return Verdict(differences=run.differences), run.figures
            run.begin_oracle(without=unread)
            return run.finish(unread=unread), run.figures | {"unread": len(unread)}

    return plan


def publish(run: Run, n: int) -> None:
    run.publisher.start(n)
    run.publisher.finish()


def counted(run: Run, seconds: float = 60.0) -> None:
    """Wait until everything that was published is in the tables."""
    reader = Reader(run.settings)
    run.expect(reader.wait(run.publisher.ends(), seconds, run.tend), "what was published is not counted")
    reader.close()


def ends_with(run: Run, slot: Slot, code: int, words: str, seconds: float) -> None:
    """The worker must end by itself, with this code, saying this."""
    slot.wanted = False
    began = time.monotonic()
    try:
        got = slot.worker.exit_code(seconds)
    except AssertionError:
        run.expect(False, f"it did not end within {seconds:g} s: {slot.last_words}")
        return
    run.figures["ended_after_seconds"] = round(time.monotonic() - began, 1)
    run.figures["said"] = slot.last_words[-300:]
    run.expect(got == code, f"it ended with {got}, not {code}: {slot.last_words}")
    run.expect(words in slot.worker.log, f"it did not say {words!r}: {slot.last_words}")


def delete(run: Run, *names: str) -> None:
    for future in run.admin.delete_topics(list(names)).values():
        future.result(20)
    deadline = Deadline(20)
    while set(names) & run.admin.list_topics(timeout=20).topics.keys() and not deadline.is_over:
        time.sleep(0.1)
    time.sleep(0.5)


def gap(run: Run, slot: Slot, unread: list[int]) -> None:
    """The worker's own count of the hole is the number of records that nobody could read."""
    name = "callfunnel_worker_source_gap_events_total"
    run.until(lambda: slot.worker.metric(name) == len(unread), 30, f"it counts {len(unread)} as missing")
    run.expect("are gone from the topic" in slot.worker.log, f"it did not say so: {slot.last_words}")


def _cut(run: Run, unread: list[int], how: Callable[[dict[int, int]], None]) -> None:
    """Publish, and let Kafka forget about half of it before anybody reads it."""
    counted_until = run.publisher.ends()
    publish(run, run.events // 3)
    ends = run.publisher.ends()
    lows = {p: (counted_until.get(p, 0) + end) // 2 for p, end in ends.items()}
    how(lows)
    found = _lows(run)
    for partition, places in run.publisher.places.items():
        unread += places[counted_until.get(partition, 0) : found[partition]]
    run.expect(len(unread) > 0, "nothing was cut off")


def _lows(run: Run) -> dict[int, int]:
    reader = Reader(run.settings, dead_letters=False)
    lows = {number: reader.first_offset(run.settings.source_topic, number) for number in range(PARTITIONS)}
    reader.close()
    return lows


def _truncated_away(run: Run, slot: Slot, unread: list[int]) -> None:
    """Beside a real Prometheus, which has seen the worker before it stopped, and sees it after."""
    with Prometheus(run.folder / "prometheus", "callfunnel", [f"127.0.0.1:{slot.port}"]) as server:
        run.until(lambda: server.now("callfunnel_source_lost_records"), 30, "Prometheus has seen the view")
        slot.stop()

        def cut(lows: dict[int, int]) -> None:
            asked = [TopicPartition(run.settings.source_topic, p, low) for p, low in lows.items()]
            for future in run.admin.delete_records(asked).values():
                future.result(20)

        _cut(run, unread, cut)
        slot.start().wait_until_ready()
        gap(run, slot, unread)
        _seen_in(server, run, unread)


def _seen_in(server: Prometheus, run: Run, unread: list[int]) -> None:
    """The loss is on the dashboard, and an alert can ask for it: the counter of the worker began with it."""
    panel = next(
        panel
        for panel in check.panels(json.loads(build.documents()["callfunnel-engine.json"]))
        if panel["title"] == "Lost before they were read"
    )
    shown = panel["targets"][0]["expr"].replace("$job", "callfunnel")

    def total(expr: str) -> float:
        return sum(value for _, value in server.now(expr))

    run.until(lambda: total(shown) == len(unread), 30, f"the panel shows {len(unread)}")
    run.sleep(3)  # samples of the counter, too
    told = total("sum(increase(callfunnel_worker_source_gap_events_total[1h]))")
    recent = total("count(time() - callfunnel_source_loss_timestamp_seconds < 600)")
    run.expect(recent >= 1, "no alert could tell that it happened just now")
    run.figures |= {"panel_shows": total(shown), "increase_of_the_counter": told}


def _retention(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.stop()
    source = run.settings.source_topic

    def expire(lows: dict[int, int]) -> None:
        configure(run.admin, source, retention_ms="1000", segment_ms="100")
        deadline = Deadline(40)
        while not any(_lows(run).values()) and not deadline.is_over:
            time.sleep(0.5)
        time.sleep(2)
        configure(run.admin, source, retention_ms="-1", segment_ms="604800000")
        time.sleep(2)

    _cut(run, unread, expire)
    slot.start().wait_until_ready()
    gap(run, slot, unread)


def _made_anew_while_down(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.stop()
    _make_source_anew(run)
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "the tables were made from another topic of this name", 40)


def _made_anew_while_up(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.wanted = False
    _make_source_anew(run)
    # However it ends, the one after it tells what a person has to decide.
    try:
        run.figures["first_end"] = slot.worker.exit_code(60)
    except AssertionError:
        run.expect(False, f"it goes on in silence on a topic that was made anew: {slot.last_words}")
        return
    run.figures["first_said"] = slot.last_words[-300:]
    run.expect(run.figures["first_end"] in (70, 75, 78), f"it ended with {run.figures['first_end']}")
    if run.figures["first_end"] != exit_codes.CONFIG:
        slot.start()
        ends_with(run, slot, exit_codes.CONFIG, "the tables were made from another topic of this name", 40)


def _made_anew_and_filled(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.stop()
    _begin_a_new_source(run, unread, lambda: delete(run, run.settings.source_topic))
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "the tables were made from another topic of this name", 60)
    _refuses_to_adopt(run)
    _count_anew(run, slot)


def _refilled(run: Run, slot: Slot, unread: list[int]) -> None:
    """The topic stays the same to Kafka, but its only disk came back empty."""
    slot.stop()
    (node,) = run.cluster.nodes

    def empty() -> None:
        node.stop()
        for number in range(PARTITIONS):
            for file in (node.log.parent / "data" / f"{run.settings.source_topic}-{number}").iterdir():
                if file.name != "partition.metadata":
                    file.unlink()
        node.start()
        run.cluster.wait()

    _begin_a_new_source(run, unread, empty)
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "is not the one that the tables took in there", 60)
    _refuses_to_adopt(run)
    _count_anew(run, slot)


def _another_source(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.stop()
    former = run.settings.source_topic
    run.settings = replace(run.settings, source_topic=f"{former}-2")
    run.publisher.move(run.settings)
    _begin_a_new_source(run, unread, lambda: None)
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, f"the tables were made from another topic, {former}", 60)
    _refuses_to_adopt(run)
    _count_anew(run, slot)


def _copied_and_adopted(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.stop()
    former = run.settings.source_topic
    run.settings = replace(run.settings, source_topic=f"{former}-copy")
    topics.create(run.settings)
    _copy(run, former)
    run.publisher.move(run.settings)
    publish(run, run.events // 10)
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "`callfunnel source adopt`", 60)
    before = run.positions()
    for point in ("begun:1", "sent:2", "appended:1", "written:1", "committed:1", "committed:2"):
        code, said = _adopt(run, failpoint=point)
        run.expect(code == 137, f"it did not die at {point}, but ended with {code}: {said}")
    code, said = _adopt(run)
    run.figures["adopted"] = [line.partition(":")[0] for line in said.splitlines()]
    run.carries_out("adopt")
    run.expect(code == 0, f"adopting ended with {code}: {said}")
    run.expect(run.positions() == before, f"positions moved from {before} to {run.positions()}")
    slot.start().wait_until_ready()


BERLIN = {"hangup_seconds": 40.0, "timezone": "Europe/Berlin"}


def _refolded(run: Run, slot: Slot, unread: list[int]) -> None:
    """Settings of the fold change and go back, each way with deaths in the middle; events come meanwhile."""
    slot.stop()
    _derived(run, slot, **BERLIN)
    publish(run, run.events // 10)
    counted(run)
    slot.stop()
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "`callfunnel fold adopt`", 60)
    for point in ("begun:1", "sent:2", "written:1", "committed:1", "committed:2"):
        done = callfunnel(variables(replace(run.settings, failpoint=point)), "fold", "adopt")
        run.expect(done.returncode == 137, f"it did not die at {point}: {done.stderr}")
    done = callfunnel(variables(run.settings), "fold", "adopt")
    run.carries_out("fold-adopt")
    run.expect(done.returncode == 0, f"adopting ended with {done.returncode}: {done.stderr}")
    _derived(run, slot)


def _derived(run: Run, slot: Slot, **changes: Any) -> None:
    """The worker derives the rows anew, dies in the middle of it and begins again, and comes to its end."""
    points = ("sent:5", "begun:2", "written:3", "committed:2", "committed:5")
    for point in points if run.events > 10_000 else points[:1]:
        slot.start(failpoint=point, **changes)
        slot.wanted = False
        code = slot.worker.exit_code(60)
        run.expect(code == 137, f"it did not die at {point}, but ended with {code}: {slot.last_words}")
    slot.start(**changes).wait_until_ready()
    told = "the derived rows are in force"
    run.until(lambda: told in slot.worker.log or "deriving" not in slot.worker.log, 60, "rows are derived")


def _begin_a_new_source(run: Run, unread: list[int], how: Callable[[], None]) -> None:
    """Another topic, with other records, that reaches farther than the tables do."""
    before = run.publisher.ends()
    unread += [place for places in run.publisher.places.values() for place in places]
    how()
    topics.create(run.settings)
    run.publisher.forget()
    publish(run, run.events // 2)
    ends = run.publisher.ends()
    run.expect(all(ends[p] > end for p, end in before.items()), f"{ends} is not beyond {before}")


def _count_anew(run: Run, slot: Slot) -> None:
    """What the worker advises: another app id."""
    app_id = f"{run.settings.app_id}-anew"
    run.settings = replace(run.settings, app_id=app_id, dead_letter_topic=f"{app_id}.dlq")
    topics.create(run.settings)
    run.carries_out("count-anew")
    slot.start().wait_until_ready()


def _refuses_to_adopt(run: Run) -> None:
    before = run.positions()
    code, said = _adopt(run)
    run.expect(code == exit_codes.CONFIG, f"adopting other records ended with {code}: {said}")
    run.expect("Nothing was changed." in said, f"it did not say that nothing was changed: {said}")
    run.expect(run.positions() == before, f"positions moved from {before} to {run.positions()}")


def _adopt(run: Run, **changes: Any) -> tuple[int, str]:
    """The exit code of `callfunnel source adopt`, and what it said."""
    ended = callfunnel(variables(replace(run.settings, **changes)), "source", "adopt", seconds=120)
    return ended.returncode, ended.stdout + ended.stderr


def _copy(run: Run, source: str) -> None:
    """Every record at its offset, as a mirror or a restore has it."""
    producer = Producer(
        {"bootstrap.servers": run.settings.broker, "enable.idempotence": True, "log_level": 0}
    )
    for number, end in run.publisher.ends().items():
        consumer = Consumer({"bootstrap.servers": run.settings.broker, "group.id": "copy", "log_level": 0})
        consumer.assign([TopicPartition(source, number, 0)])
        while end:
            for message in consumer.consume(min(end, 1000), 10):
                producer.produce(
                    run.settings.source_topic,
                    message.value(),
                    message.key(),
                    number,
                    timestamp=message.timestamp()[1],
                )
                end -= 1
            producer.flush()
        consumer.close()


def _make_source_anew(run: Run) -> None:
    delete(run, run.settings.source_topic)
    topics.create(run.settings)
    run.publisher.forget()
    publish(run, run.events // 30)


def _grown_while_down(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.stop()
    _grow(run)
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "(remedy count-anew)", 40)


def _grown_while_up(run: Run, slot: Slot, unread: list[int]) -> None:
    _grow(run)
    run.publisher.start(run.events // 3, 30)
    ends_with(run, slot, exit_codes.CONFIG, "partitions", 90)
    run.publisher.finish()


def _grow(run: Run) -> None:
    asked = [NewPartitions(run.settings.source_topic, PARTITIONS + 2)]
    for future in run.admin.create_partitions(asked).values():
        future.result(20)
    time.sleep(1)


def _changelogs(run: Run) -> Iterable[str]:
    return funnel_changelog(run.settings.app_id), leads_changelog(run.settings.app_id)


def _changelog_deleted(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.wanted = False
    delete(run, funnel_changelog(run.settings.app_id))
    run.publisher.start(run.events // 30)
    ends_with(run, slot, exit_codes.SOFTWARE, funnel_changelog(run.settings.app_id), 60)
    run.publisher.finish()
    slot.start()
    create = f"callfunnel topics create --broker {run.settings.broker} --profile development"
    ends_with(run, slot, exit_codes.CONFIG, f"is missing; run `{create}` (remedy create-topics)", 40)
    topics.create(run.settings)
    run.carries_out("create-topics")
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "(remedy rebuild)", 40)
    delete(run, *_changelogs(run), run.settings.dead_letter_topic)
    topics.create(run.settings)
    run.carries_out("rebuild")
    slot.start().wait_until_ready()


def _changelog_made_anew(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.wanted = False
    changelog = funnel_changelog(run.settings.app_id)
    delete(run, changelog)
    topics.create(run.settings)
    run.publisher.start(run.events // 30)
    ends_with(run, slot, exit_codes.CONFIG, "it was created anew under this worker", 40)
    run.publisher.finish()
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "(remedy rebuild)", 40)
    delete(run, *_changelogs(run), run.settings.dead_letter_topic)
    topics.create(run.settings)
    run.carries_out("rebuild")
    slot.start().wait_until_ready()


def _dead_letters_deleted(run: Run, slot: Slot, unread: list[int]) -> None:
    slot.wanted = False
    delete(run, run.settings.dead_letter_topic)
    before = run.publisher.ends()
    run.publisher.start(run.events // 10)
    ends_with(run, slot, exit_codes.SOFTWARE, run.settings.dead_letter_topic, 60)
    run.publisher.finish()
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, f"{run.settings.dead_letter_topic} is missing", 40)
    at = run.positions()
    run.expect(
        all(at.get(p, 0) >= offset for p, offset in before.items()), f"positions went back: {before}, {at}"
    )
    topics.create(run.settings)
    run.carries_out("create-topics")
    run.dead_letters_from = at
    slot.start().wait_until_ready()


def _settings_changed(run: Run, slot: Slot, unread: list[int]) -> None:
    """Somebody lets Kafka delete what the tables are made of."""
    slot.stop()
    configure(run.admin, funnel_changelog(run.settings.app_id), cleanup_policy="delete")
    slot.start()
    ends_with(run, slot, exit_codes.CONFIG, "(remedy fix-topics)", 40)
    topics.mend(run.settings)
    run.carries_out("fix-topics")
    slot.start().wait_until_ready()


def _damaged(run: Run, slot: Slot, unread: list[int]) -> None:
    """A disk changes a bit of a record batch that nobody had read; there is no other copy."""
    slot.stop()
    before = run.publisher.ends()
    publish(run, run.events // 3)
    partition = run.chance.choice(sorted(before))
    (node,) = run.cluster.nodes
    folder = node.log.parent / "data" / f"{run.settings.source_topic}-{partition}"
    first, last = _flip(folder / f"{0:020}.log", before[partition] + 10)
    unread += run.publisher.places[partition][first : last + 1]
    slot.start().wait_until_ready()
    run.until(lambda: "(remedy give-up)" in slot.worker.log, 30, "the worker tells of the damage")
    run.expect(
        f"from offset {first} to {last} are damaged" in slot.worker.log, f"{first} to {last} not named"
    )
    others = {number: end for number, end in run.publisher.ends().items() if number != partition}
    reader = Reader(run.settings)
    run.expect(reader.wait(others, 60, run.tend), "the other partitions do not go on")
    reader.close()
    run.expect(run.positions()[partition] == first, f"it stands at {run.positions()[partition]}, not {first}")
    given_up = TopicPartition(run.settings.source_topic, partition, last + 1)
    run.admin.delete_records([given_up])[given_up].result(20)
    run.carries_out("give-up")
    gap(run, slot, unread)


def _flip(segment: Path, at_least: int) -> tuple[int, int]:
    """Change the last byte of the first record batch from an offset on; its first and last offset."""
    data = segment.read_bytes()
    place = 0
    while True:
        first, length = struct.unpack_from(">qi", data, place)
        (delta,) = struct.unpack_from(">i", data, place + 23)
        if first >= at_least:
            with segment.open("r+b") as file:
                file.seek(place + 12 + length - 1)
                file.write(bytes([data[place + 12 + length - 1] ^ 0xFF]))
            return first, first + delta
        place += 12 + length


CASES = {
    "settings": (
        _settings_changed,
        "a changelog gets settings that lose rows, while no worker runs",
        "fix-topics",
    ),
    "damaged": (_damaged, "a disk changes a record batch that nobody had read", "give-up"),
    "truncated": (_truncated_away, "records are deleted that nobody had read"),
    "retention": (_retention, "retention passes while no worker runs"),
    "anew-down": (_made_anew_while_down, "the source is made anew while no worker runs"),
    "anew-filled": (
        _made_anew_and_filled,
        "the source is made anew and filled beyond the old offset while no worker runs",
        "count-anew",
    ),
    "refilled": (_refilled, "the source loses its records and is filled beyond the old offset", "count-anew"),
    "other-source": (_another_source, "another source topic under the same app id", "count-anew"),
    "adopted": (
        _copied_and_adopted,
        "the source is copied to another topic, and the copy is adopted",
        "adopt",
    ),
    "refolded": (
        _refolded,
        "settings of the fold change and go back, with deaths while rows are derived",
        "fold-adopt",
    ),
    "anew-up": (_made_anew_while_up, "the source is made anew under a worker"),
    "grown-down": (_grown_while_down, "the source gets more partitions while no worker runs"),
    "grown-up": (_grown_while_up, "the source gets more partitions under a worker"),
    "changelog": (_changelog_deleted, "a changelog is deleted under a worker", "create-topics", "rebuild"),
    "changelog-anew": (_changelog_made_anew, "a changelog is made anew under a worker", "rebuild"),
    "dead-letters": (
        _dead_letters_deleted,
        "the dead-letter topic is deleted under a worker",
        "create-topics",
    ),
}
ACTS = {name: (_case(act), about, *remedies) for name, (act, about, *remedies) in CASES.items()}
"""Each case as a plan, and what it carries out of `agents.remedies`."""

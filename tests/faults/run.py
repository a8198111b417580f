"""One run: topics of its own, workers that are tended like a supervisor would, a stream, and the verdict.

The law: whatever a plan does, the run ends with the same questions. Do the changelogs, read by a stranger,
hold the oracle's cells? Does each worker's page say what the oracle says? Does a fresh worker that restores
them go on exactly, with what was held back and with repeats of what it has not seen itself?
"""

import os
import random
import signal
import sys
import threading
import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self

import msgspec
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient

from callfunnel.agents import exit_codes
from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import free_port
from callfunnel.agents.kafka import topics
from callfunnel.agents.remedies import REMEDIES
from deploy.kafka import kraft
from faults import stream
from faults.stream import PARTITIONS, Expected, Mix, Sent
from faults.verify import Reader, Verdict, compare
from faults.watch import Answers, Promtool, Watch, business, fetch
from integration.workers import PROGRAM, Worker, variables, with_only
from patience import Deadline

HELD_BACK = 0.05
"""The share of the stream that only the fresh worker gets to see."""

RESTARTED = frozenset({exit_codes.TEMPFAIL, exit_codes.SOFTWARE, exit_codes.UNAVAILABLE})
"""The exit codes after which a supervisor starts a worker again; any other end is a finding."""


class Slot:
    """A place for a worker: its name in the group and its port outlive its processes."""

    def __init__(self, run: "Run", number: int, command: str = "worker") -> None:
        self.name = f"w{number}"
        self.command = command
        self.port = free_port()
        self.worker: Worker | None = None
        self.wanted = False
        self.starts = 0
        self._run = run

    @property
    def pid(self) -> int:
        return self.worker.process.pid if self.worker else 0

    @property
    def is_running(self) -> bool:
        return self.worker is not None and self.worker.process.poll() is None

    @property
    def page(self) -> str:
        status, body = fetch(self.port)
        return body if status == 200 else ""

    def start(
        self, environ: Mapping[str, str] | None = None, program: Sequence[str] = PROGRAM, **changes: Any
    ) -> Worker:
        run = self._run
        self.starts += 1
        named = {"instance": self.name} if run.static else {}
        settings = msgspec.structs.replace(run.settings, **{"http_port": self.port, **named} | changes)
        own = variables(settings) | {"TMPDIR": str(run.folder)} | dict(environ or {})
        log = run.folder / f"{self.name}-{self.starts}.log"
        self.worker = Worker(settings, log, with_only(own), program, self.command)
        self.wanted = True
        return self.worker

    def kill(self) -> None:
        assert self.worker is not None
        self.wanted = False
        self.worker.kill()

    def stop(self, within_seconds: float = 5.0) -> float:
        """SIGTERM; how long it took. It must end with 0 in time."""
        assert self.worker is not None
        self.wanted = False
        began = time.monotonic()
        self.worker.send(signal.SIGTERM)
        code = self.worker.exit_code(30)
        took = time.monotonic() - began
        self._run.expect(code == 0, f"{self.name}: SIGTERM ended it with {code}: {self.last_words}")
        self._run.expect(took <= within_seconds, f"{self.name}: SIGTERM took {took:.1f} s")
        return took

    @property
    def last_words(self) -> str:
        return " / ".join(self.worker.log.strip().splitlines()[-3:]) if self.worker else ""


class Publisher:
    """Publishes the stream in the background and knows where each record went."""

    def __init__(self, settings: Settings, sent: Iterator[Sent]) -> None:
        self.published = 0
        self.places: dict[int, array[int]] = defaultdict(lambda: array("q"))
        """By partition: the place in the stream of the record at each offset."""
        self.reasons: dict[int, str] = {}
        """The place of each poisoned record, and why it must be refused."""
        self._sent = sent
        self._settings = settings
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self.forget()

    def forget(self) -> None:
        """The topic is another by now: its offsets begin again."""
        self.places.clear()
        self._copies: list[tuple[int, int, int]] = []
        """Partition, first offset and number of records that were written again behind them."""
        self._producer = Producer(
            {
                "bootstrap.servers": self._settings.broker,
                "partitioner": "murmur2_random",
                "enable.idempotence": True,
                "linger.ms": 5,
                "batch.num.messages": 200,
                "queue.buffering.max.messages": 50_000,
                "message.timeout.ms": 240_000,
                "log_level": 0,
            }
        )

    def move(self, settings: Settings) -> None:
        """Publish to the source of these settings from now on; what was published lies there, too."""
        self._settings = settings

    def start(self, n: int, seconds: float = 0.0) -> None:
        """Publish the next `n` records, evenly over so many seconds."""
        self._thread = threading.Thread(target=self._run, args=(n, seconds), name="publisher", daemon=True)
        self._thread.start()

    @property
    def is_done(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def finish(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        for partition, start, n in self._copies:
            places = self.places[partition]
            places[start : start + n] = places[start + n : start + 2 * n]

    @property
    def written_twice(self) -> int:
        """A killed broker may have written what it did not acknowledge: the client writes that again."""
        return sum(n for _, _, n in self._copies)

    def ends(self) -> dict[int, int]:
        return {partition: len(places) for partition, places in self.places.items()}

    def _run(self, n: int, seconds: float) -> None:
        try:
            began = time.monotonic()
            step = max(1, int(n * 0.05 / seconds)) if seconds else 1000
            for done in range(0, n, step):
                for sent in islice(self._sent, min(step, n - done)):
                    self._produce(sent)
                self._producer.poll(0)
                if seconds:
                    time.sleep(max(0.0, began + (done + step) / n * seconds - time.monotonic()))
            if self._producer.flush(240):
                raise TimeoutError("records were not acknowledged within 240 s")
        except BaseException as failure:
            self._failure = failure

    def _produce(self, sent: Sent) -> None:
        place = self.published
        self.published += 1
        if sent.reason is not None:
            self.reasons[place] = sent.reason

        def delivered(error: Any, message: Message) -> None:
            places = self.places[message.partition()]
            offset = message.offset()
            if offset is None:  # sent again, and already there: only the acknowledgement was lost
                offset = len(places)
            missing = 0 if error else offset - len(places)
            if error or missing < 0:
                self._failure = self._failure or AssertionError(
                    f"record {place}: {error or f'offset {offset}, expected {len(places)}'}"
                )
            elif missing:
                self._copies.append((message.partition(), len(places), missing))
                places.extend([place] * missing)
            places.append(place)

        while True:
            try:
                self._producer.produce(
                    self._settings.source_topic,
                    sent.value,
                    sent.key,
                    timestamp=sent.at_ms,
                    on_delivery=delivered,
                )
                return
            except BufferError:
                self._producer.poll(0.05)


class Run:
    """What a plan acts on."""

    def __init__(
        self,
        name: str,
        cluster: kraft.Cluster,
        folder: Path,
        *,
        seed: int,
        events: int,
        workers: int,
        mix: Mix | None = None,
        sent: Iterator[Sent] | None = None,
        watched: bool = True,
        replicas: int = 1,
        static: bool = True,
        **settings: Any,
    ) -> None:
        self.cluster = cluster
        self.seed = seed
        self.events = events
        self.mix = mix or Mix()
        self.chance = random.Random(f"{name} {seed}")
        self.folder = folder
        self.static = static
        self.figures: dict[str, Any] = {}
        self.differences: list[str] = []
        self.restarts: Counter[int] = Counter()
        self.dead_letters_from: Mapping[int, int] = {}
        """By partition: the first source offset whose dead letter is still there."""
        prefix = f"{name}-{seed}-{os.getpid()}"
        own = {
            "broker": cluster.address,
            "profile": "development",
            "app_id": prefix,
            "source_topic": f"{prefix}-call-events",
            "dead_letter_topic": f"{prefix}-call-events.dlq",
            "clock": "event",
            "partitions": PARTITIONS,
            "replication_factor": replicas,
            "min_insync_replicas": replicas // 2 + 1,
            "session_timeout_seconds": 6.0,
            "heartbeat_seconds": 1.0,
            "commit_interval_seconds": 0.5,
            "batch_events": 500,
            "batch_spacing_seconds": 0.0,
            "agent_label": "off",
            "wait_seconds": 30.0,
        }
        self.settings = Settings.from_environ({}, **own | settings)
        self.admin = AdminClient({"bootstrap.servers": cluster.address, "log_level": 0})
        topics.create(self.settings)
        self.publisher = Publisher(self.settings, sent or stream.records(seed, events, self.mix))
        self.promtool = Promtool()
        self.answers = Answers()
        self.slots = [Slot(self, number) for number in range(1, workers + 1)]
        self.watches = [self._watch(slot) for slot in self.slots] if watched else []
        self._oracle: Future[Expected] | None = None
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), initializer=os.nice, initargs=(5,))

    def _watch(self, slot: Slot) -> Watch:
        watch = Watch(slot.name, slot.port, lambda: slot.pid, self.promtool, self.answers)
        watch.start()
        return watch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for watch in self.watches:
            watch.stop()
        for slot in self.slots:
            if slot.worker is not None:
                slot.worker.kill()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def expect(self, holds: object, otherwise: str) -> None:
        """A demand of the plan itself; what does not hold is a difference."""
        if not holds:
            self.differences.append(otherwise)

    def carries_out(self, remedy: str) -> None:
        """What the last message advises is done next."""
        self.figures.setdefault("remedies", []).append(REMEDIES[remedy].id)

    # what a plan does

    @property
    def first(self) -> int:
        """How many records there are before the part that is held back."""
        return self.events - int(self.events * HELD_BACK)

    def begin_oracle(self, *after: int, without: Iterable[int] = ()) -> None:
        """Let it compute in a process of its own, beside the run."""
        self._oracle = self._pool.submit(
            stream.expected, self.seed, self.events, PARTITIONS, self.mix,
            without=frozenset(without), after=(*after, self.first),
        )  # fmt: skip

    def expected(self) -> Expected:
        assert self._oracle is not None
        return self._oracle.result()

    def start_workers(self) -> None:
        for slot in self.slots:
            slot.start()
        for slot in self.slots:
            slot.worker.wait_until_ready()

    def tend(self) -> None:
        """Start again what ended by itself and may; what may not is a difference, and stays down."""
        if sys.stderr.isatty():
            done = f"{self.publisher.published:,} of {self.events:,} published"
            print(f"\r  {done}, {self.restarts.total()} restarts ", end="\r", file=sys.stderr, flush=True)
        for slot in self.slots:
            if not slot.wanted or slot.is_running:
                continue
            code = slot.worker.process.returncode
            self.restarts[code] += 1
            if code in RESTARTED:
                slot.start()
            else:
                slot.wanted = False
                self.expect(False, f"{slot.name} ended with {code}: {slot.last_words}")

    def sleep(self, seconds: float) -> None:
        """Let so much time pass; workers are tended meanwhile."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.tend()
            time.sleep(min(left, 0.2))

    def until(self, holds: Callable[[], object], seconds: float, what: str) -> float:
        """Wait until it holds; how long it took. That it does not is a difference."""
        began, deadline = time.monotonic(), Deadline(seconds)
        while not holds():
            if deadline.is_over:
                self.expect(False, f"{what}: not within {seconds:g} s")
                break
            self.tend()
            time.sleep(0.05)
        return time.monotonic() - began

    def running(self) -> list[Slot]:
        return [slot for slot in self.slots if slot.is_running]

    def positions(self) -> dict[int, int]:
        """Up to which offset of each source partition the tables go at this moment."""
        reader = Reader(self.settings, dead_letters=False)
        while not reader.is_at_end:
            reader.read(0.2)
        reader.close()
        return {number: reader.left.position(number).get("offset", 0) for number in range(PARTITIONS)}

    def wait_for_pages(self, counters: stream.Counters, seconds: float = 30.0) -> None:
        """Until every worker's page says exactly this."""
        for slot in self.running():
            self.until(
                lambda slot=slot: business(slot.page) == counters,
                seconds,
                f"{slot.name}: its page says what the oracle says",
            )

    # the end of a run

    def finish(
        self,
        *,
        patience: float | None = None,
        at_rest: Callable[[Expected], object] | None = None,
        unread: Iterable[int] = (),
    ) -> Verdict:
        """Publish what is left, ask the three questions, and give the verdict.

        `unread` are the places of records that nobody could read.
        """
        unread = frozenset(unread)
        patience = patience or 120 + self.events / 10_000  # what was killed again and again is behind
        if self._oracle is None:
            self.begin_oracle()
        publisher = self.publisher
        publisher.finish()
        publisher.start(self.first - publisher.published)
        publisher.finish()
        reader = Reader(self.settings)
        began = time.monotonic()
        self.expect(
            reader.wait(publisher.ends(), patience, self.tend),
            f"after {patience:g} s the tables do not cover the source: {publisher.ends()} against "
            f"{ {p: reader.left.position(p).get('offset') for p in publisher.ends()} }",
        )
        self.figures["caught_up_seconds"] = round(time.monotonic() - began, 1)
        expected = self.expected()
        self.wait_for_pages(expected.counters[-2])
        if at_rest is not None:
            at_rest(expected)
        self._restart_afresh(reader)
        publisher.start(self.events - publisher.published)
        publisher.finish()
        self.expect(
            reader.wait(publisher.ends(), patience, self.tend), "the fresh worker does not come to the end"
        )
        self.wait_for_pages(expected.counters[-1])
        reader.close()
        dead = {
            (partition, offset, publisher.reasons[place]): 1
            for partition, places in publisher.places.items()
            for offset, place in enumerate(places)
            if place in publisher.reasons and place not in unread
            if offset >= self.dead_letters_from.get(partition, 0)
        }
        read = {
            partition: sum(place not in unread for place in places)
            for partition, places in publisher.places.items()
        }
        verdict = compare(reader.left, expected, read, dead)
        verdict.replayed = int(self.replayed)
        for watch in self.watches:
            watch.stop()
            verdict.differences += watch.complaints[:20]
        verdict.differences += self.differences
        self.figures |= {
            "records": publisher.published,
            "written_twice": publisher.written_twice,
            "applied": reader.left.total("applied"),
            "duplicates": reader.left.total("duplicates"),
            "rejected": reader.left.total("rejected"),
            "pages": sum(watch.pages for watch in self.watches),
            "page_gap_seconds": round(self.answers.longest_gap_seconds, 1),
            "promtool": "asked" if self.promtool.is_there else "not installed: not asked",
            "restarts_by_exit_code": {str(code): n for code, n in self.restarts.items()},
        }
        return verdict

    @property
    def replayed(self) -> float:
        return sum(watch.total("callfunnel_worker_events_replayed_total") for watch in self.watches)

    def _restart_afresh(self, reader: Reader) -> None:
        """All workers go, one comes that has seen nothing: it holds what the changelogs hold."""
        for slot in self.running():
            slot.stop(within_seconds=10.0)
        fresh = Slot(self, len(self.slots) + 1)
        self.slots.append(fresh)
        self.watches.append(self._watch(fresh))
        began = time.monotonic()
        fresh.start()
        fresh.worker.wait_until_ready(300)  # an hour's changelog is not compacted yet
        self.figures["fresh_worker_seconds"] = round(time.monotonic() - began, 1)
        self.until(
            lambda: _table_rows(fresh) == reader.left.rows, 30, f"the fresh worker holds {reader.left.rows}"
        )


def _table_rows(slot: Slot) -> tuple[int, int]:
    worker = slot.worker
    assert worker is not None
    return tuple(
        int(worker.metric(f'callfunnel_worker_table_rows{{table="{t}"}}')) for t in ("funnel", "leads")
    )

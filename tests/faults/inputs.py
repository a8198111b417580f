"""What arrives is not as it should be: a corpus of cases with a known end, mutations, garbage."""

import re
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from callfunnel.schemas.codec import REASONS, Decoder, Limits, Rejected
from faults import corpus, stream
from faults.lab import Lab, Size, configure
from faults.run import PARTITIONS, Run
from faults.stream import Sent
from faults.verify import Reader, Verdict
from integration import raw

CONSUMED = "callfunnel_worker_events_consumed_total"
HOME = 0
"""The partition with the odd batches."""

MEMORY_MIB = 700
"""What a worker may take, whatever comes."""

THROUGH_A_WORKER = 0.2
"""The share of the mutations that a worker gets to see; all go through the decoder."""


def cases(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Each case of the corpus is applied, or a dead letter with the reason that stands in the corpus."""
    refused, seconds = _decode(seed, size.events, int(time.time() * 1000))
    lab.cluster()  # cases are judged by the time at which they are published: what takes time comes before
    now_ms = int(time.time() * 1000)
    known = corpus.cases(now_ms)
    through = int(size.events * THROUGH_A_WORKER)
    sent = chain(
        (Sent(case.value, case.key, 0, case.reason, {}) for case in known),
        (Sent(value, key, 0, None, {}) for value, key in corpus.mutations(seed, through, now_ms)),
    )
    options = {"workers": 1, "clock": "wall"}
    with lab.run(name, seed=seed, events=len(known) + through, sent=sent, **options) as run:
        run.publisher.start(run.events)
        run.publisher.finish()
        packed, ends = _send_batches(run, now_ms)
        run.start_workers()
        reader = Reader(run.settings)
        began = time.monotonic()
        run.expect(reader.wait(ends, 120, lambda: None), "the tables do not cover the source: a stall")
        taken = time.monotonic() - began
        run.expect(run.slots[0].is_running, f"the worker ended: {run.slots[0].last_words}")
        reader.close()
        left, verdict = reader.left, Verdict()
        peak_mib = _peak_mib(run)
        verdict.expect(
            peak_mib < MEMORY_MIB, f"the worker took {peak_mib:.0f} MiB; a container of {MEMORY_MIB} ends it"
        )
        letters = {(partition, offset): reason for partition, offset, reason in left.dead}
        at = {
            place: (partition, offset)
            for partition, places in run.publisher.places.items()
            for offset, place in enumerate(places)
        }
        for place, case in enumerate(known):
            got = letters.get(at[place])
            verdict.expect(got == case.reason, f"{case.name}: expected {case.reason}, got {got}")
        for first, batch in packed.items():
            for n, reason in enumerate(batch.reasons):
                got = letters.get((HOME, first + n))
                verdict.expect(got == reason, f"{batch.name}, record {n}: expected {reason}, got {got}")
        verdict.doubled = sum(n - 1 for n in left.dead.values())
        records = run.events + sum(batch.records for batch in packed.values())
        verdict.holes = records - left.total("applied") - left.total("duplicates") - left.total("rejected")
        verdict.expect(verdict.holes == 0, f"{verdict.holes} records are neither applied nor refused")
        lumped = sum(batch.records - len(batch.reasons) for batch in packed.values())
        verdict.expect(
            sum(left.dead.values()) + lumped == left.total("rejected"),
            f"{sum(left.dead.values())} dead letters, tables say {left.total('rejected')}",
        )
        verdict.differences += run.differences
        return verdict, {
            "cases": len(known) + len(packed),
            "records_in_odd_batches": sum(batch.records for batch in packed.values()),
            "bytes_of_odd_batches": sum(len(batch.batch) for batch in packed.values()),
            "worker_peak_mib": round(peak_mib),
            "to_be_refused": sum(case.reason is not None for case in known),
            "mutations": size.events,
            "mutations_refused": refused,
            "mutations_seconds": round(seconds, 1),
            "mutations_through_a_worker": through,
            "worker_seconds": round(taken, 1),
        }


def _send_batches(run: Run, now_ms: int) -> tuple[dict[int, corpus.Packed], dict[int, int]]:
    """The batches of the corpus by the offset of their first record, and where the source ends then."""
    settings, ends = run.settings, dict.fromkeys(range(PARTITIONS), 0) | run.publisher.ends()
    configure(run.admin, settings.source_topic, max_message_bytes=str(32 << 20))
    names = [f"lead of a batch {n}" for n in range(100)]
    at_home = next(name for name in names if stream.home(name, PARTITIONS) == HOME)
    away = next(name for name in names if stream.home(name, PARTITIONS) != HOME)
    packed = {}
    for batch in chain(corpus.batches(now_ms, at_home, away), corpus.whole_blocks(now_ms, at_home)):
        first = raw.send(settings.broker, settings.source_topic, HOME, batch.batch)
        packed[first] = batch
        ends[HOME] = first + batch.records
        ends[stream.home(away, PARTITIONS)] += "away" in batch.name
    return packed, ends


def _peak_mib(run: Run) -> float:
    """The most memory that the worker has had at a time."""
    status = Path(f"/proc/{run.slots[0].pid}/status").read_text() if run.slots[0].is_running else ""
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def _decode(seed: int, n: int, at_ms: int) -> tuple[int, float]:
    """Every mutation gets a verdict, the same alone as amid its neighbours."""
    decoder = Decoder(Limits())
    began = time.monotonic()
    records = list(corpus.mutations(seed, n, at_ms))
    together = decoder.decode_all(
        [value for value, _ in records], [key for _, key in records], [at_ms] * len(records)
    )
    refused = 0
    for (value, key), verdict in zip(records, together, strict=True):
        assert decoder.decode(value, key, at_ms) == verdict, value
        if isinstance(verdict, Rejected):
            assert verdict.reason in REASONS, value
            refused += 1
    return refused, time.monotonic() - began


def garbage(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Half of the records garbage: at least half as many records a second as without."""
    clean = _records_per_second(lab, f"{name}-clean", seed, size.events, _good(seed))
    half = _records_per_second(lab, f"{name}-half", seed, size.events, _half_garbage(seed))
    verdict = Verdict()
    verdict.expect(half >= clean / 2, f"{half:.0f} records/s, {clean:.0f} without garbage")
    figures = {"clean_records_per_second": round(clean), "half_garbage_records_per_second": round(half)}
    return verdict, figures | {"share": round(half / clean, 2)}


def _good(seed: int) -> Iterator[Sent]:
    return stream.records(seed, 10_000_000, stream.Mix(poison=0.0))


def _half_garbage(seed: int) -> Iterator[Sent]:
    garbled = corpus.mutations(seed, 10_000_000, stream.START_MS)
    for sent, (value, key) in zip(_good(seed), garbled, strict=False):
        yield sent
        yield Sent(value, key, sent.at_ms, None, {})


def _records_per_second(lab: Lab, name: str, seed: int, n: int, sent: Iterator[Sent]) -> float:
    """How fast a worker takes what waits for it, from its first batch to its last."""
    options = {"workers": 1, "batch_events": 10_000, "view": False, "watched": False}
    with lab.run(name, seed=seed, events=n, sent=sent, **options) as run:
        run.publisher.start(n)
        run.publisher.finish()
        run.start_workers()
        return _speed(run, n)


def _speed(run: Run, n: int) -> float:
    worker = run.slots[0].worker
    worker.wait_until(lambda: worker.metric(CONSUMED) > 0, 60, "has taken nothing")
    began, before = time.monotonic(), worker.metric(CONSUMED)
    worker.wait_until(lambda: worker.metric(CONSUMED) >= n, 120, "has not taken everything")
    return (n - before) / (time.monotonic() - began)

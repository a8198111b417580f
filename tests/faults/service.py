"""What an operator waits for and pays for: Prometheus, failover, recovery, memory over time, clocks."""

import resource
import socket
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from statistics import median
from typing import Any

import orjson
from e2e.prometheus import Prometheus

from bench.machine import cpu_seconds, memory_mib
from faults import stream
from faults.lab import Lab, Size
from faults.processes import kill_at_random
from faults.run import PARTITIONS, Run
from faults.stream import Sent
from faults.verify import Reader, Verdict
from faults.watch import business, fetch

FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


def prometheus(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """`increase()` over the whole run, with workers killed in it, is the number of events of the run."""
    with lab.run(name, seed=seed, events=size.events, workers=2) as run:
        prologue = size.events // 10
        run.begin_oracle(prologue)
        run.start_workers()
        run.publisher.start(prologue)
        run.publisher.finish()
        seen = stream.expected(seed, prologue, PARTITIONS, run.mix).counters[-1]
        run.wait_for_pages(seen)
        addresses = [f"127.0.0.1:{slot.port}" for slot in run.slots]
        with Prometheus(run.folder / "prometheus", "callfunnel", addresses) as server:
            run.until(lambda: _scraped(server) == set(addresses), 30, "Prometheus has scraped every worker")
            run.publisher.start(run.first - prologue, size.seconds)
            kill_at_random(run, size)

            def compare(expected: stream.Expected) -> None:
                run.sleep(4)
                before, after = expected.counters[0], expected.counters[1]
                want = {labels: n - before.get(labels, 0) for labels, n in after.items()}
                segments = [{labels[1:] for labels in each} for each in (before, after)]
                run.expect(segments[0] == segments[1], "a series began after the first scrape")
                for address in addresses:
                    got = _increase(server, address)
                    wrong = [
                        f"{n}, not {got.get(labels)}" for labels, n in want.items() if got.get(labels) != n
                    ]
                    run.expect(not wrong, f"increase() at {address} should be {wrong}")
                run.figures["increase_series"] = len(want) * len(addresses)

            return run.finish(at_rest=compare), run.figures | {"kills": size.times}


def _scraped(server: Prometheus) -> set[str]:
    return {labels["instance"] for labels, _ in server.now("callfunnel_events_total")}


def _increase(server: Prometheus, address: str) -> stream.Counters:
    """From the first sample to the last, whose times bound the range: so nothing is extrapolated."""
    selector = f'callfunnel_events_total{{instance="{address}"}}'
    samples = server.ask("query", query=f"{selector}[1h]")["result"]
    first = min(series["values"][0][0] for series in samples)
    last = max(series["values"][-1][0] for series in samples)
    length_ms = round((last - first) * 1000) + 1
    result = server.ask("query", query=f"increase({selector}[{length_ms}ms])", time=f"{last:.3f}")["result"]
    return {
        (labels["funnel_stage"], labels["campaign"], labels["source"]): round(float(series["value"][1]))
        for series in result
        for labels in (series["metric"],)
    }


def failover(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """One of two workers is killed: how long until the other one's page is right again."""
    with lab.run(name, seed=seed, events=size.events, workers=2, static=False) as run:
        share = run.first // size.times
        points = [share * number for number in range(1, size.times + 1)]
        run.begin_oracle(*points)
        run.start_workers()
        took = []
        limit = run.settings.session_timeout_seconds + 10
        for number, counters in enumerate(run.expected().counters[: size.times]):
            run.until(lambda: all(slot.worker.is_ready for slot in run.running()), 30, "both are ready")
            victim, heir = run.slots[number % 2], run.slots[1 - number % 2]
            victim.kill()
            began = time.monotonic()
            run.publisher.start(share)
            run.publisher.finish()
            run.until(lambda: business(heir.page) == counters, 60, "the heir's page is right")  # noqa: B023
            took.append(time.monotonic() - began)
            victim.start()
        run.expect(max(took) <= limit, f"it took {max(took):.1f} s; {limit:g} s are allowed")
        figures = {
            "failover_seconds_p50": round(median(took), 1),
            "failover_seconds_max": round(max(took), 1),
        }
        return run.finish(), run.figures | figures


DESCRIPTORS = 1_024
"""What a process may have on most machines, unless it is told otherwise."""

CONNECTIONS = 2_000

HOLDS = {
    "idle": b"",
    "half a request": b"GET /metrics HTTP/1.1\r\nHost: loc",
    "answers left unread": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
}
"""How a client holds on to a connection, and what it sends for it."""


def crowd(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Clients hold on to a worker under load: it counts, and whoever scrapes it gets through."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the clients are of this process
    with lab.run(name, seed=seed, events=size.events, workers=1) as run:
        run.begin_oracle()
        run.start_workers()
        (slot,) = run.slots
        resource.prlimit(slot.pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
        run.publisher.start(run.first, size.seconds)
        undisturbed = max(_answered(run, slot.port, "nobody", 60.0))
        limit = max(10.0, 20 * undisturbed)  # a scrape's usual timeout, where the machine is not busy
        slowest, most = 0.0, 0
        for how in [*HOLDS] * size.times:
            with ExitStack() as clients:
                for _ in range(CONNECTIONS):
                    client = clients.enter_context(socket.socket())
                    client.settimeout(0.2)
                    with suppress(OSError):  # nobody takes it, or it is closed for another one
                        client.connect(("127.0.0.1", slot.port))
                        client.sendall(HOLDS[how])
                run.tend()
                slowest = max(slowest, *_answered(run, slot.port, f"{CONNECTIONS} clients, {how}", limit))
                most = max(most, _usage(slot.pid)[1])
        run.expect(slot.starts == 1, f"the worker was started {slot.starts} times")
        figures = {
            "connections": CONNECTIONS * len(HOLDS) * size.times,
            "most_descriptors": most,
            "slowest_answer_seconds": round(slowest, 2),
            "slowest_answer_seconds_undisturbed": round(undisturbed, 2),
        }
        return run.finish(), run.figures | figures


def _answered(run: Run, port: int, beside: str, limit_seconds: float) -> list[float]:
    """How long each path takes that somebody asks for in turn; each must be answered."""
    took = []
    for path in ("/metrics", "/-/ready", "/-/healthy"):
        began = time.monotonic()
        status, _ = fetch(port, path, timeout_seconds=limit_seconds)
        took.append(time.monotonic() - began)
        run.expect(status == 200, f"beside {beside}, {path} answers {status} after {took[-1]:.1f} s")
    return took


def recovery(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """How long a fresh worker takes to restore so many leads, and what memory they take."""

    def leads() -> Any:
        for number in range(size.events):
            lead = f"lead-{number:09d}"
            event = {
                "event_id": f"{lead}-1", "type": "dial", "lead_id": lead,
                "occurred_at": stream.START_MS + number, "campaign": "spring", "source": "list",
                "agent": f"a-{number % 50}", "team": f"t-{number % 5}",
            }  # fmt: skip
            yield Sent(orjson.dumps(event), lead.encode(), stream.START_MS + number, None, event)

    options = {"workers": 1, "batch_events": 10_000, "watched": False, "stall_seconds": 300.0}
    with lab.run(name, seed=seed, events=size.events, sent=leads(), **options) as run:
        (slot,) = run.slots

        def started() -> tuple[float, float, float]:
            """Seconds until it was ready, the CPU seconds among them, and its memory then."""
            began = time.monotonic()
            slot.start()
            slot.worker.wait_until_ready(240)
            return time.monotonic() - began, cpu_seconds(slot.pid), memory_mib(slot.pid, "VmRSS")

        without = started()
        run.publisher.start(size.events)
        run.publisher.finish()
        reader = Reader(run.settings)
        run.expect(reader.wait(run.publisher.ends(), 400, run.tend), "they are not all in the tables")
        reader.close()
        run.expect(reader.left.rows[1] == size.events, f"{reader.left.rows[1]} leads are in the tables")
        folded = memory_mib(slot.pid, "VmRSS")
        slot.stop(within_seconds=10)
        seconds, cpu, memory = started()
        held = 'callfunnel_worker_table_rows{table="leads"}'
        run.until(lambda: slot.worker.metric(held) == size.events, 10, "it holds every lead")
        verdict = Verdict(differences=run.differences)
        verdict.expect(seconds <= 60 * max(1, size.events / 1_000_000), f"it took {seconds:.0f} s")
        records = [len(value) for rows in reader.left.leads.values() for value in rows.values()]
        return verdict, {
            "leads": size.events,
            "rows": sum(reader.left.rows),
            "record_bytes": round(sum(records) / len(records)),
            "seconds": round(seconds, 1),
            "seconds_without_leads": round(without[0], 1),
            "cpu_seconds": cpu,
            "cpu_seconds_without_leads": without[1],
            "memory_mib": round(memory),
            "memory_mib_without_leads": round(without[2]),
            "memory_mib_before_the_restart": round(folded),
        }


def soak(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """A steady load on tables that grow little: memory, descriptors and threads stay as they are."""
    stay = list(stream.records(seed, 20_000, stream.Mix(poison=0.0)))

    def load() -> Any:
        """Nearly all repeats, which change nothing; a few new events, so that rows are written."""
        yield from stay
        number = 0
        while True:
            for sent in stay:
                number += 1
                if number % 50 == 0:
                    event = sent.event | {"event_id": f"{sent.event['event_id']}-{number}"}
                    yield Sent(orjson.dumps(event), sent.key, sent.at_ms, None, event)
                else:
                    yield sent

    events = int(size.events * size.seconds)
    with lab.run(name, seed=seed, events=events, sent=load(), workers=1) as run:
        run.start_workers()
        run.publisher.start(events, size.seconds)
        pid, samples = run.slots[0].pid, []
        began = time.monotonic()
        while time.monotonic() - began < size.seconds:
            run.sleep(2)
            samples.append((time.monotonic() - began, *_usage(pid)))
        run.publisher.finish()
        steady = samples[len(samples) // 3 :]
        slope = _slope([(at, memory) for at, memory, _, _ in steady]) * 600
        verdict = Verdict(differences=run.differences)
        verdict.expect(run.slots[0].starts == 1, "the worker was started again")
        verdict.expect(slope <= 1.0, f"memory grows by {slope:.2f} MiB in 10 min")
        figures = {"memory_mib": round(steady[-1][1], 1), "slope_mib_per_10_min": round(slope, 2)}
        for place, what in ((2, "descriptors"), (3, "threads")):
            seen = [sample[place] for sample in steady]
            figures[what] = [min(seen), max(seen)]
            verdict.expect(max(seen) - min(seen) <= 2, f"{what} went from {min(seen)} to {max(seen)}")
        return verdict, figures | {"events_per_second": size.events, "seconds": size.seconds}


def _usage(pid: int) -> tuple[float, int, int]:
    """Resident memory in MiB, open descriptors and threads of a process."""
    process = Path("/proc") / str(pid)
    threads = len(list((process / "task").iterdir()))
    return memory_mib(pid, "VmRSS"), len(list((process / "fd").iterdir())), threads


def _slope(points: list[tuple[float, float]]) -> float:
    """Theil-Sen: the median of the slopes between all pairs, which some outliers do not move."""
    pairs = ((a, b) for place, a in enumerate(points) for b in points[place + 1 :])
    return median((b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs)


def clocks(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """One worker lives an hour ahead, one an hour behind, and one's clock jumps while it runs."""
    if not Path(FAKETIME).exists():
        return Verdict(), {"left_out": "faketime is not installed (Debian: apt-get install faketime)"}
    with lab.run(name, seed=seed, events=size.events, workers=3) as run:
        jumping = run.folder / "faketime"
        jumping.write_text("+0")
        run.begin_oracle()
        for slot, shift in zip(run.slots, ("+3600", "-3600", None), strict=True):
            where = {"FAKETIME": shift} if shift else {"FAKETIME_TIMESTAMP_FILE": str(jumping)}
            slot.start(_faked(where))
        for slot in run.slots:
            slot.worker.wait_until_ready()
        run.publisher.start(run.first, size.seconds)
        jumps = 0
        while not run.publisher.is_done:
            jumping.write_text(f"{run.chance.choice((-3600, -600, 0, 600, 3600)):+d}")
            jumps += 1
            run.sleep(2)
        return run.finish(), run.figures | {"jumps": jumps}


def _faked(how: dict[str, str]) -> dict[str, str]:
    # The monotonic clock is no wall clock: it goes on as it does.
    return {"LD_PRELOAD": FAKETIME, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1", **how}

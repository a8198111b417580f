"""One partition gets nothing but poison for a while: the others are not touched, and it is exact, too."""

import time
from typing import Any

import msgspec

from callfunnel.agents import exit_codes
from faults import stream
from faults.lab import Lab, Size
from faults.processes import kill_at_random
from faults.run import Run
from faults.stream import FLOODED, PARTITIONS
from faults.verify import Reader, Verdict
from integration.workers import callfunnel, variables

FLOOD = 0.4
STOPS = {"dlq_stop": True, "dlq_share_window": 200}


def named(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """No worker ends for it, whoever is killed meanwhile; it is named while it lasts, and only it."""
    mix = msgspec.structs.replace(lab.mix, flood=FLOOD)
    with lab.run(name, seed=seed, events=size.events, workers=3, mix=mix) as run:
        places = stream.flood(run.events, mix)
        run.begin_oracle()
        run.start_workers()
        _publish(run, places.start)
        run.until(lambda: _poisoned(run) == set(), 30, "no partition is poisoned")
        run.publisher.start(len(places), size.seconds)
        kill_at_random(run, size)
        run.publisher.finish()
        run.until(lambda: _poisoned(run) == {FLOODED}, 60, "the flooded partition alone is poisoned")
        verdict = run.finish()
        run.until(lambda: _poisoned(run) == set(), 30, "no partition is poisoned any more")
        ends = set(run.restarts) - {exit_codes.TEMPFAIL}
        verdict.expect(not ends, f"workers ended with {ends}")
        return verdict, run.figures | {"kills": size.times, "rejected_in_a_row": _in_a_row(run)}


def stopped(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Where poison stops a partition, it stops that one alone, for every worker, until it is resumed."""
    mix = msgspec.structs.replace(lab.mix, flood=FLOOD)
    with lab.run(name, seed=seed, events=size.events, workers=2, mix=mix, **STOPS) as run:
        run.begin_oracle()
        run.start_workers()
        _publish(run, stream.flood(run.events, mix).stop)
        others = {number: end for number, end in run.publisher.ends().items() if number != FLOODED}
        _counted(run, others)
        stood = [run.positions()[FLOODED]]
        for _ in range(size.times):
            owner = run.chance.choice(run.running())
            owner.kill()
            owner.start().wait_until(lambda owner=owner: _lag_is_known(owner.page), 60, "has not joined")
            stood.append(run.positions()[FLOODED])
        run.expect(len(set(stood)) == 1, f"the stopped partition stood at {stood}")
        run.expect(stood[0] < run.publisher.ends()[FLOODED], "the flooded partition was not stopped")
        waiting = run.publisher.ends()[FLOODED] - stood[0]
        run.expect(FLOODED in _poisoned(run), "the stopped partition is not named")
        _resume(run)
        began = time.monotonic()
        _counted(run, run.publisher.ends())
        figures = {"kills": size.times, "records_that_waited": waiting}
        figures["resumed_after_seconds"] = round(time.monotonic() - began, 1)
        return run.finish(), run.figures | figures


def _publish(run: Run, n: int) -> None:
    run.publisher.start(n)
    run.publisher.finish()


def _counted(run: Run, ends: dict[int, int]) -> None:
    reader = Reader(run.settings, dead_letters=False)
    run.expect(reader.wait(ends, 120, run.tend), f"the tables do not cover {ends}")
    reader.close()


def _poisoned(run: Run) -> set[int]:
    """The partitions that any worker names."""
    return {
        number
        for slot in run.running()
        for number in range(PARTITIONS)
        if _sample("poisoned", number, run) + " 1.0" in slot.page
    }


def _sample(name: str, partition: int, run: Run) -> str:
    return f'callfunnel_worker_{name}{{partition="{partition}",topic="{run.settings.source_topic}"}}'


def _lag_is_known(page: str) -> bool:
    return "callfunnel_worker_consumer_lag{" in page


def _resume(run: Run) -> None:
    done = callfunnel(variables(run.settings), "source", "resume", "--partition", str(FLOODED))
    run.carries_out("resume")
    run.expect(done.returncode == 0, f"source resume: {done.stdout}{done.stderr}")


def _in_a_row(run: Run) -> int:
    """The longest run of rejected records in the flooded partition."""
    longest = length = 0
    for place in run.publisher.places[FLOODED]:
        length = length + 1 if place in run.publisher.reasons else 0
        longest = max(longest, length)
    return longest

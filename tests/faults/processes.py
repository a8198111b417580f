"""What happens to worker processes: killed, told to go, frozen."""

import signal
import time
from typing import Any

from callfunnel.agents import exit_codes
from faults import prefixes, stream
from faults.lab import Lab, Size, compact
from faults.run import Run, Slot
from faults.verify import Verdict


def kills(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    with lab.run(name, seed=seed, events=size.events, workers=3) as run:
        run.begin_oracle()
        run.start_workers()
        run.publisher.start(run.first, size.seconds)
        kill_at_random(run, size)
        return run.finish(), run.figures | {"kills": size.times}


def kill_at_random(run: Run, size: Size) -> None:
    mean = size.seconds / (size.times + 1)
    back_at: dict[Slot, float] = {}
    for _ in range(size.times):
        until = time.monotonic() + min(run.chance.expovariate(1 / mean), 3 * mean)
        while time.monotonic() < until or len(run.running()) < 2:
            for slot in [slot for slot, at in back_at.items() if at < time.monotonic()]:
                slot.start()
                del back_at[slot]
            run.sleep(0.1)
        victim = run.chance.choice(run.running())
        victim.kill()
        # Back at once it is the same member; after the session its partitions are others'.
        away = 1.3 * run.settings.session_timeout_seconds if run.chance.random() < 0.3 else 0.0
        back_at[victim] = time.monotonic() + away
    for slot in back_at:
        slot.start()


def views(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    """Three views during kills, joins and leaves: each page counts a prefix of what was published."""
    with lab.run(name, seed=seed, events=size.events, workers=3, static=False) as run:
        run.begin_oracle()
        run.start_workers()
        run.publisher.start(run.first, size.seconds)
        for number in range(size.times):
            run.sleep(run.chance.uniform(0.5, 1.5) * size.seconds / size.times / 2)
            slot = run.chance.choice(run.running())
            if number % 2:
                slot.kill()
                run.sleep(1.3 * run.settings.session_timeout_seconds)
            else:
                slot.stop()
            slot.start()
            run.until(lambda slot=slot: slot.worker.is_ready, 30, f"{slot.name} is ready")
        verdict = run.finish()
        shown = [(watch.name, *page) for watch in run.watches for page in watch.shown.items()]
        sent = list(stream.records(seed, size.events, run.mix))
        must = prefixes.expected({prefix for _, prefix, _ in shown}, run.publisher.places, sent)
        for watch, prefix, said in shown:
            verdict.expect(said == must[prefix], f"{watch}: of {prefix} a page says {said}: {must[prefix]}")
        return verdict, run.figures | {"pages_compared": len(shown), "restarts": size.times}


def rebalances(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    with lab.run(name, seed=seed, events=size.events, workers=4, static=False) as run:
        run.begin_oracle()
        for slot in run.slots[:2]:
            slot.start().wait_until_ready()
        run.publisher.start(run.first, size.seconds)
        took, joined = [], 0
        for _ in range(size.times):
            inside = run.running()
            outside = [slot for slot in run.slots if not slot.is_running]
            if outside and (len(inside) == 1 or run.chance.random() < 0.5):
                slot = run.chance.choice(outside)
                slot.start()
                run.until(lambda slot=slot: slot.worker.is_ready, 30, f"{slot.name} is ready")
                joined += 1
            else:
                took.append(run.chance.choice(inside).stop())
            run.sleep(run.chance.uniform(0.2, 2))
        verdict = run.finish()
        share = verdict.replayed / size.events
        verdict.expect(share <= 0.01, f"{verdict.replayed} of {size.events} records were replayed")
        figures = {"joined": joined, "left": len(took), "slowest_sigterm_seconds": round(max(took), 2)}
        return verdict, run.figures | figures | {"replayed_share": share}


def zombies(lab: Lab, name: str, seed: int, size: Size) -> tuple[Verdict, dict[str, Any]]:
    options = {"workers": 3, "static": False, "session_timeout_seconds": 4.0}
    with lab.run(name, seed=seed, events=size.events, **options) as run:
        run.begin_oracle()
        run.start_workers()
        run.publisher.start(run.first, size.seconds)
        gone_after, compacted = [], 0
        for number in range(size.times):
            run.until(lambda: all(slot.worker.is_ready for slot in run.running()), 30, "all are ready")
            run.sleep(run.chance.uniform(0.2, 2))
            sleeper = run.chance.choice(run.running())
            worker = sleeper.worker
            sleeper.wanted = False
            worker.send(signal.SIGSTOP)
            run.sleep(1.5 * run.settings.session_timeout_seconds)
            if number % 2:
                compacted += compact(lab.cluster(), run)
            worker.send(signal.SIGCONT)
            began = time.monotonic()
            code = worker.exit_code(20)
            gone_after.append(time.monotonic() - began)
            run.expect(code == exit_codes.TEMPFAIL, f"the zombie ended with {code}: {sleeper.last_words}")
            run.expect(gone_after[-1] <= 1.0, f"the zombie was there for {gone_after[-1]:.2f} s")
            sleeper.start()
        figures = {
            "zombies": size.times,
            "slowest_end_seconds": round(max(gone_after), 2),
            "offsets_cleaned": compacted,
        }
        return run.finish(), run.figures | figures

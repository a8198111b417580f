"""The worker's law on both brokers: whatever happens to workers, the tables are those of the published events."""

import random
import signal
import time

from integration.workers import BATCH_EVENTS, PARTITIONS, SEED, assert_equal, calls

CONSUMED = "callfunnel_worker_events_consumed_total"
REPLAYED = "callfunnel_worker_events_replayed_total"
OWNED = 'callfunnel_worker_partitions{state="active"}'


def test_the_tables_are_those_of_the_events_for_history_and_a_floor_with_faults(workers):
    records = calls(clients=3000, live_events=8000)
    workers.publish(records)
    workers.start(batch_events=10_000)
    left = workers.wait(len(records))
    assert_equal(left, records)
    assert left.total("duplicates") > 1000
    assert (left.total("rejected"), left.total("rerouted"), left.dead) == (0, 0, [])


def test_kill_9_at_any_moment_loses_nothing_and_counts_nothing_twice(workers):
    """Seven kills: while joining, while restoring, and in the middle of batches; the events keep coming."""
    records = calls(clients=3000, live_events=6000)
    chance = random.Random(SEED)
    in_the_middle = 0
    with workers.publishing(records, seconds=20):
        for _ in range(7):
            worker = workers.start(instance="w1")
            if chance.random() < 0.3:
                time.sleep(chance.uniform(0.3, 3))
            else:
                worker.wait_until(lambda: worker.metric(CONSUMED) > 0, 40, "has folded nothing")  # noqa: B023
                time.sleep(chance.uniform(0, 1))
                in_the_middle += worker.metric(CONSUMED) < len(records)
            worker.kill()
        workers.start(instance="w1")
    left = workers.wait(len(records))
    assert in_the_middle >= 3, f"FUNNEL_TEST_SEED={SEED}"
    assert_equal(left, records)


def test_workers_join_and_leave_in_the_middle_of_the_stream(workers):
    records = calls(clients=3000, live_events=6000)
    with workers.publishing(records, seconds=16):
        first = workers.start().wait_until_ready()
        first.wait_until(lambda: first.metric(CONSUMED) > 0, 20, "has folded nothing")
        second = workers.start().wait_until_ready()
        third = workers.start().wait_until_ready()
        third.wait_until(lambda: third.metric(CONSUMED) > 0, 20, "has folded nothing")
        replayed = sum(worker.metric(REPLAYED) for worker in (first, second, third))
        for leaving in (first, third):
            leaving.send(signal.SIGTERM)
            assert leaving.exit_code(5) == 0
    left = workers.wait(len(records))
    assert_equal(left, records)
    assert second.metric(OWNED) == PARTITIONS
    assert second.metric(REPLAYED) + replayed <= PARTITIONS * BATCH_EVENTS

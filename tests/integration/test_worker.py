"""The worker's law on both brokers: whatever happens to workers, the tables are those of the events."""

import random
import re
import signal
import time

import pytest

from callfunnel.agents.demo.broker import remove_dead_members
from integration.workers import BATCH_EVENTS, PARTITIONS, SEED, assert_equal, calls

CONSUMED = "callfunnel_worker_events_consumed_total"
REPLAYED = "callfunnel_worker_events_replayed_total"
SERVING = re.compile(r"serving (http://\S+)/")
OWNED = 'callfunnel_worker_partitions{state="active"}'


def test_the_tables_are_those_of_the_events_for_history_and_a_floor_with_faults(workers):
    records = calls(clients=3000, live_events=8000)
    workers.publish(records)
    workers.start(batch_events=10_000)
    left = workers.wait(len(records))
    assert_equal(left, records)
    assert left.total("duplicates") > 1000
    assert (left.total("rejected"), left.total("rerouted"), left.dead) == (0, 0, [])


def test_kill_9_at_any_moment_loses_nothing_and_counts_nothing_twice(broker, workers):
    """Three kills: while joining, or soon after the first batch; each time there is more to do."""
    records = calls(clients=2000, live_events=4000)
    share = -(-len(records) // 3)
    chance = random.Random(SEED)
    for first in range(0, len(records), share):
        workers.publish(records[first : first + share])
        worker = workers.start(instance="w1")
        if chance.random() < 0.3:
            time.sleep(chance.uniform(0.3, 3))
        else:
            worker.wait_until(lambda: worker.metric(CONSUMED) > 0, 60, "has folded nothing")  # noqa: B023
            time.sleep(chance.uniform(0, 0.2))
        worker.kill()
    workers.start(instance="w1")
    left = workers.wait(len(records))
    assert_equal(left, records)


@pytest.mark.broker("kafka")
def test_workers_join_and_leave_in_the_middle_of_the_stream(workers):
    records = calls(clients=2000, live_events=4000)
    with workers.publishing(records, seconds=14):
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


def test_a_second_worker_on_a_host_takes_the_next_port_and_says_so(workers):
    """Whether the usual port is free is up to what else runs on the machine."""
    both = [workers.start(http_port=None) for _ in range(2)]
    urls = []
    for worker in both:
        worker.wait_until(lambda: SERVING.search(worker.log), 60, "serves nothing")  # noqa: B023
        worker.url = SERVING.search(worker.log)[1]
        urls.append(worker.url)
        worker.wait_until_ready()
    assert len(set(urls)) == 2
    *_, last = sorted(zip(urls, both, strict=True))
    assert f"port 9464 is taken: the pages are served at {last[0]}/." in last[1].log


def test_a_port_that_is_set_and_taken_ends_a_worker_with_the_setting_to_change(workers):
    first = workers.start().wait_until_ready()
    second = workers.start(http_port=first.settings.http_port)
    assert second.exit_code(60) == 64
    assert (
        f"CALLFUNNEL_HTTP_PORT: another program listens on 127.0.0.1:{first.settings.http_port}" in second.log
    )
    assert first.is_ready


@pytest.mark.broker("kafka")
def test_two_workers_told_to_stop_at_once_leave_everything_to_the_third(workers):
    records = calls(clients=1000, live_events=2000)
    *leaving, last = [workers.start().wait_until_ready() for _ in range(3)]
    with workers.publishing(records, seconds=4):
        last.wait_until(lambda: last.metric(CONSUMED) > 0, 20, "has folded nothing")
        for worker in leaving:
            worker.send(signal.SIGTERM)
        assert [worker.exit_code(5) for worker in leaving] == [0, 0]
    assert_equal(workers.wait(len(records)), records)
    assert last.metric(OWNED) == PARTITIONS


@pytest.mark.broker("kafka")
def test_one_of_two_workers_is_killed_and_the_other_takes_over(workers, broker):
    records = calls(clients=1000, live_events=2000)
    survivor = workers.start(instance="survivor").wait_until_ready()
    victim = workers.start().wait_until_ready()
    with workers.publishing(records, seconds=6):
        victim.wait_until(lambda: victim.metric(CONSUMED) > 0, 20, "has folded nothing")
        victim.kill()
        if broker.kind == "embedded":  # it never notices by itself
            remove_dead_members(workers.settings, alive={"survivor"})
    assert_equal(workers.wait(len(records)), records)
    assert survivor.metric(OWNED) == PARTITIONS


@pytest.mark.broker("kafka")
def test_a_worker_that_slept_while_another_took_over_ends_itself_and_harms_nothing(workers, broker):
    """On the embedded broker nobody loses a session: there the sleeper is put out of the group by hand."""
    records = calls(clients=1000, live_events=2000)
    heir = workers.start(instance="heir").wait_until_ready()
    sleeper = workers.start().wait_until_ready()
    with workers.publishing(records, seconds=12):
        sleeper.wait_until(lambda: sleeper.metric(CONSUMED) > 0, 20, "has folded nothing")
        sleeper.send(signal.SIGSTOP)
        if broker.kind == "embedded":
            remove_dead_members(workers.settings, alive={"heir"})
        heir.wait_until(lambda: heir.is_ready and heir.metric(OWNED) == PARTITIONS, 30, "has not taken over")
        sleeper.send(signal.SIGCONT)
        assert sleeper.exit_code(5) == 75
        if broker.kind == "embedded":  # it may have joined again before it noticed
            remove_dead_members(workers.settings, alive={"heir"})
    assert_equal(workers.wait(len(records)), records)
    assert "start again" in sleeper.log

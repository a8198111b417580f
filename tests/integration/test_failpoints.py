"""A worker may die at every place that has a name: the tables are those of the events all the same.

`FUNNEL_FAILPOINT_HITS=5` dies at each of the first five hits of every point, on both brokers; without it,
once at each point, on the embedded broker.
"""

import os

import pytest

from callfunnel.agents.failpoints import POINTS
from integration.workers import assert_equal, calls

HITS = int(os.environ.get("FUNNEL_FAILPOINT_HITS", "0"))
ONCE_IN_A_REBALANCE = {"revoked", "assigned", "fenced", "taken-over", "ready"}


@pytest.mark.timeout(3_600)
def test_dying_at_any_failpoint_loses_nothing_and_counts_nothing_twice(broker, workers):
    if not HITS and broker.kind != "embedded":
        pytest.skip("every failpoint on Apache Kafka: FUNNEL_FAILPOINT_HITS=5")
    deaths = [
        f"{point}:{1 if point in ONCE_IN_A_REBALANCE else hit}"
        for hit in range(1, max(HITS, 1) + 1)
        for point in sorted(POINTS, key="restored".__eq__)  # last: there must be something to restore
    ]
    records = calls(clients=60 * len(deaths), live_events=150 * len(deaths))
    share = -(-len(records) // len(deaths))
    for number, death in enumerate(deaths):
        point, _, hit = death.partition(":")
        events = records[number * share : (number + 1) * share]
        workers.publish(events[1::2], partitioner="consistent")  # mostly away from home
        with workers.publishing(events[::2], seconds=1.5 * int(hit)):
            worker = workers.start(instance="w1", failpoint=death, commit_interval_seconds=0.2)
            assert worker.exit_code(60) == 137, f"{death}:\n{worker.log}"
        assert worker.log.endswith(f"failpoint {point}\n")
    workers.start(instance="w1")
    left = workers.wait(len(records))
    assert_equal(left, records)
    assert left.total("rerouted") > len(records) // 4
    assert left.total("duplicates") > 0
    assert left.dead == []

"""The worker's law on both brokers: whatever happens to workers, the tables are those of the published events."""

from integration.workers import assert_equal, calls


def test_the_tables_are_those_of_the_events_for_history_and_a_floor_with_faults(workers):
    records = calls(clients=3000, live_events=8000)
    workers.publish(records)
    workers.start(batch_events=10_000)
    left = workers.wait(len(records))
    assert_equal(left, records)
    assert left.total("duplicates") > 1000
    assert (left.total("rejected"), left.total("rerouted"), left.dead) == (0, 0, [])

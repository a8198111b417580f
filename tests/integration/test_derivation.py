"""Settings of the fold change, and the rows follow from the logs: no new app id, no source, no hand."""

import pytest
from kafka import TopicPartition
from msgspec.structs import replace

from callfunnel.agents.kafka.connection import admin_client
from integration.workers import PARTITIONS, assert_equal, callfunnel, calls, variables

BERLIN = {"hangup_seconds": 40.0, "timezone": "Europe/Berlin", "pane_retention_minute_hours": 24}
AS_ORACLE = {"hangup_ms": 40_000, "timezone": "Europe/Berlin", "minute_hours": 24}
RECORDS = 900


def empty(workers, ends):
    """The source holds nothing any more."""
    with admin_client(workers.settings) as admin:
        topic = workers.settings.source_topic
        admin.delete_records({TopicPartition(topic, number): end for number, end in ends.items()})


def are_of(generation):
    """Whether all partitions have turned, and nothing is left of the rows before."""

    def holds(left):
        positions = [left.position(number) for number in range(PARTITIONS)]
        return all(one and one.generation == generation for one in positions) and left.is_swept

    return holds


def counted(workers, **settings):
    records = calls(clients=100, live_events=RECORDS)
    workers.publish(records)
    worker = workers.start(instance="w1", **settings)
    left = workers.wait(len(records))
    worker.kill()
    return records, left


def test_rows_are_derived_anew_without_the_source(broker, workers):
    records, before = counted(workers)
    assert_equal(before, records)
    if broker.kind == "kafka":  # the embedded one deletes no records
        empty(workers, {number: len(arrived) for number, arrived in before.source.items()})
    worker = workers.start(instance="w1", **BERLIN)
    after = workers.wait_for(are_of(1))
    worker.kill()
    after.source = before.source
    assert_equal(after, records, **AS_ORACLE)
    assert after.tables != before.tables
    assert "deriving the rows anew from the logs of the leads: hang-up threshold 15000 ms" in worker.log
    assert "the derived rows are in force" in worker.log


@pytest.mark.parametrize("failpoint", ["begun:2", "sent:9", "written:5", "committed:4", "committed:6"])
def test_a_derivation_that_is_killed_is_begun_again(workers, failpoint):
    records, _ = counted(workers)
    dying = workers.start(instance="w1", **BERLIN, failpoint=failpoint)
    assert dying.exit_code(30) == 137
    workers.start(instance="w1", **BERLIN)
    assert_equal(workers.wait_for(are_of(1)), records, **AS_ORACLE)


@pytest.mark.broker("kafka")
def test_a_worker_with_former_settings_ends_until_going_back_is_meant(workers):
    records, before = counted(workers)
    worker = workers.start(instance="w1", **BERLIN)
    workers.wait_for(are_of(1))
    former = workers.start(instance="w2")  # joins the group, and gets partitions that have turned
    assert former.exit_code(60) == 78
    assert "`callfunnel fold adopt`" in former.log
    checked = callfunnel(variables(workers.settings), "check")
    told = "partitions 0, 1, 2, 3 of 4: a worker with these settings ends with 78, others have replaced them"
    assert (checked.returncode, f"FAIL settings: {told}" in checked.stdout) == (78, True), checked.stdout
    meant = callfunnel(variables(replace(workers.settings, **BERLIN)), "check")
    assert "ok   settings: the tables are made with these settings of the fold" in meant.stdout
    unheard = callfunnel(variables(replace(workers.settings, timezone="Asia/Kolkata")), "check")
    assert "warn settings: partitions 0, 1, 2, 3 of 4 are made with other settings" in unheard.stdout
    worker.kill()

    adopted = callfunnel(variables(workers.settings), "fold", "adopt")
    assert adopted.returncode == 0, adopted.stderr
    assert (
        adopted.stdout
        == "Partitions 0, 1, 2, 3 may go back to these settings. Start the workers with them.\n"
    )
    workers.start(instance="w1")
    after = workers.wait_for(are_of(2))
    assert_equal(after, records)
    assert after.tables == before.tables
    again = callfunnel(variables(workers.settings), "fold", "adopt")
    assert "nothing to do" in again.stdout

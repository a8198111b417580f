"""A worker in surroundings that are wrong: it ends with the code that says whose turn it is, and a remedy."""

import asyncio
import re
import signal
import socket
import subprocess
import time

import orjson
import pytest
from conftest import Cluster
from msgspec.structs import replace

from callfunnel.agents.demo.broker import EmbeddedBroker, embedded_program
from callfunnel.agents.engine import checks
from callfunnel.agents.engine.transactions import Transactions
from callfunnel.agents.kafka import topics
from callfunnel.agents.kafka.changelog import last_positions
from callfunnel.agents.kafka.connection import admin_client, aiokafka_options
from callfunnel.agents.kafka.read_committed import repair
from callfunnel.schemas.topics import funnel_changelog, leads_changelog
from callfunnel.streams.rows import LEADS_POSITION_KEY, POSITION_KEY
from integration.workers import (
    BATCH_EVENTS,
    PARTITIONS,
    SEED,
    Workers,
    assert_equal,
    callfunnel,
    calls,
    publish,
    variables,
)
from patience import Deadline

DEAD = "127.0.0.1:1"


def callfunnel_worker(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return callfunnel(variables, "worker", "--http-port", "0", *arguments)


def test_a_broker_that_is_down_is_waited_for_with_a_word_every_5_seconds():
    began = time.monotonic()
    ended = callfunnel_worker("--broker", DEAD, "--wait", "6")
    assert ended.returncode == 69
    assert time.monotonic() - began >= 6
    assert len(re.findall(r"No broker answers at 127\.0\.0\.1:1 for \d+ s; trying again", ended.stderr)) == 1
    assert re.search(r"Error: No Kafka broker answers at 127\.0\.0\.1:1 .*--broker HOST:PORT", ended.stderr)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("CALLFUNNEL_PARTITION", "3", "CALLFUNNEL_PARTITION: there is no such setting"),
        ("CALLFUNNEL_BATCH_EVENTS", "many", "CALLFUNNEL_BATCH_EVENTS: 'many' is not allowed"),
        ("CALLFUNNEL_HEARTBEAT_SECONDS", "9", "CALLFUNNEL_HEARTBEAT_SECONDS: 9 is more than a third"),
    ],
)
def test_a_wrong_variable_is_named(variable, value, named):
    ended = callfunnel_worker(**{variable: value})
    assert ended.returncode == 64
    assert named in ended.stderr


def test_missing_topics_are_named_with_the_command_that_creates_them(broker):
    settings = broker.settings()
    ended = callfunnel_worker(**variables(settings))
    assert ended.returncode == 78
    for name in (settings.source_topic, settings.dead_letter_topic, funnel_changelog(settings.app_id)):
        remedy = f"run `callfunnel topics create --broker {broker.address} --profile development`"
        assert f"{name} is missing; {remedy}" in ended.stderr


def test_a_port_that_is_taken_is_named(workers):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        worker = workers.start(http_port=port)
        assert worker.exit_code(20) == 64
    assert f"another program listens on 127.0.0.1:{port} already" in worker.log


def test_two_workers_under_one_name_are_told_so(workers):
    first = workers.start(instance="one").wait_until_ready()
    second = workers.start(instance="one")
    deadline = Deadline(60)
    while first.process.poll() is None and second.process.poll() is None:
        assert not deadline.is_over, workers.logs()
        time.sleep(0.1)
    ended = first if first.process.poll() is not None else second
    assert ended.exit_code(1) == 64
    assert "CALLFUNNEL_INSTANCE: another worker runs as 'one', too" in ended.log


# Tables and a source that do not belong together


@pytest.fixture
def worked(workers):
    """Workers whose tables hold some calls; none runs any more."""
    records = calls(clients=200, live_events=200)
    workers.publish(records)
    worker = workers.start(instance="w1")
    assert_equal(workers.wait(len(records)), records)
    worker.kill()
    return workers


def delete(settings, topic: str) -> None:
    with admin_client(settings) as admin:
        admin.delete_topics([topic])
        deadline = Deadline(20)
        while topic in admin.list_topics() and not deadline.is_over:
            time.sleep(0.1)
    time.sleep(0.5)  # a broker tells of a deletion before it is through with it


@pytest.mark.parametrize(("clients", "live_events"), [(20, 0), (400, 400)], ids=["shorter", "longer"])
def test_a_source_made_anew_is_not_taken_for_the_old_one(worked, clients, live_events):
    delete(worked.settings, worked.settings.source_topic)
    topics.create(worked.settings)
    worked.publish(calls(clients, live_events, seed=SEED + 1))
    worker = worked.start(instance="w1")
    assert worker.exit_code(40) == 78
    assert "Nothing of it was counted" in worker.log
    assert "(remedy count-anew)" in worker.log


def test_another_source_topic_under_the_same_app_id_is_refused(worked):
    other = replace(worked.settings, source_topic=f"{worked.settings.source_topic}-2")
    topics.create(other)
    publish(other, calls(clients=400, live_events=400))
    worker = worked.start(instance="w1", source_topic=other.source_topic)
    assert worker.exit_code(40) == 78
    assert f"the tables were made from another topic, {worked.settings.source_topic}" in worker.log
    assert "`callfunnel source adopt`" in worker.log
    (tables,) = (finding for finding in checks.run(other) if finding.what == "tables")
    assert not tables.ok
    assert "another topic" in tables.told
    assert "callfunnel source adopt" in tables.remedy


def test_a_worker_that_is_given_another_source_does_not_disturb_those_that_run(workers):
    records = calls(clients=200, live_events=200)
    workers.publish(records[:300])
    worker = workers.start(instance="one").wait_until_ready()
    workers.wait(300)
    rebalances = worker.metric("callfunnel_worker_rebalances_total")
    other = replace(workers.settings, source_topic=f"{workers.settings.source_topic}-2")
    topics.create(other)
    strange = workers.start(source_topic=other.source_topic)
    assert strange.exit_code(40) == 78
    assert f"the tables were made from another topic, {workers.settings.source_topic}" in strange.log
    workers.publish(records[300:])
    assert_equal(workers.wait(len(records)), records)
    assert worker.metric("callfunnel_worker_rebalances_total") == rebalances


def test_the_same_records_in_another_topic_are_adopted(worked):
    copy = replace(worked.settings, source_topic=f"{worked.settings.source_topic}-copy")
    topics.create(copy)
    history, more = calls(clients=200, live_events=200), calls(clients=300, live_events=300)[200:]
    publish(copy, history)  # as before, so they lie at the same offsets
    assert "would   " in adopt(copy, "--dry-run").stdout
    adopted = adopt(copy)
    assert (adopted.returncode, adopted.stderr) == (0, "")
    assert adopted.stdout.count("adopted ") == PARTITIONS
    assert adopt(copy).stdout.count("same    ") == PARTITIONS
    (tables,) = (finding for finding in checks.run(copy) if finding.what == "tables")
    assert (tables.ok, tables.remedy) == (True, "")
    publish(copy, more)
    worked.start(instance="w1", source_topic=copy.source_topic)
    changes = {"source_topic": copy.source_topic}
    assert_equal(worked.wait(len(history) + len(more), **changes), [*history, *more])


def test_other_records_are_not_adopted(worked):
    other = replace(worked.settings, source_topic=f"{worked.settings.source_topic}-2")
    topics.create(other)
    publish(other, calls(clients=400, live_events=400, seed=SEED + 1))
    refused = adopt(other)
    assert refused.returncode == 78
    assert "The tables cannot go on with this topic. Nothing was changed." in refused.stderr
    worked.start(instance="w1").wait_until_ready()


def test_tables_of_the_last_version_go_on_and_are_told_once(worked):
    """Their positions name neither topic nor record."""
    rewrite_positions(worked.settings)
    records, more = calls(clients=200, live_events=200), calls(clients=300, live_events=300)[200:]
    worker = worked.start(instance="w1").wait_until_ready()
    worked.publish(more)
    assert_equal(worked.wait(len(records) + len(more)), [*records, *more])
    told = "are taken for those that the tables were made from"
    assert worker.log.count(told) == 1
    worker.kill()
    again = worked.start(instance="w1").wait_until_ready()
    assert told not in again.log


def adopt(settings, *arguments) -> subprocess.CompletedProcess[str]:
    return callfunnel(variables(settings), "source", "adopt", *arguments)


def rewrite_positions(settings) -> None:
    """Let them be as they were before they said of what their tables are made."""
    keys = {
        funnel_changelog(settings.app_id): POSITION_KEY,
        leads_changelog(settings.app_id): LEADS_POSITION_KEY,
    }
    kept = ("offset", "watermark_ms", "fold", "applied", "duplicates", "rejected", "rerouted")

    async def main():
        client = aiokafka_options(settings)
        rows = await last_positions(
            client, funnel_changelog(settings.app_id), POSITION_KEY, range(PARTITIONS)
        )
        transactions = Transactions(settings.app_id, client, 15.0)
        await transactions.own(range(PARTITIONS))
        for number, row in rows.items():
            old = orjson.loads(row)
            data = orjson.dumps({name: old[name] for name in kept})
            await transactions.write(
                number, {(topic, number): [((key, data), [], None)] for topic, key in keys.items()}
            )
        await transactions.close()

    repair()
    asyncio.run(main())


@pytest.mark.parametrize("changelog", [funnel_changelog, leads_changelog])
def test_a_changelog_that_was_deleted_alone_is_missed(worked, changelog):
    delete(worked.settings, changelog(worked.settings.app_id))
    topics.create(worked.settings)
    worker = worked.start(instance="w1")
    assert worker.exit_code(40) == 78
    assert "the two changelogs of partition" in worker.log
    assert "(remedy rebuild)" in worker.log


def test_tables_made_with_another_partitioner_are_not_mixed(worked):
    worker = worked.start(instance="w1", partitioner="crc32")
    assert worker.exit_code(40) == 78
    assert "were made with the partitioner murmur2, and CALLFUNNEL_PARTITIONER says crc32" in worker.log


def test_both_changelogs_deleted_are_rebuilt_from_the_source(worked):
    for changelog in (funnel_changelog, leads_changelog):
        delete(worked.settings, changelog(worked.settings.app_id))
    topics.create(worked.settings)
    worked.start(instance="w1")
    records = calls(clients=200, live_events=200)
    assert_equal(worked.wait(len(records)), records)


def test_other_settings_and_a_new_app_id_make_new_tables(worked):
    changes = {"app_id": f"{worked.settings.app_id}-2", "hangup_seconds": 20.0}
    topics.create(replace(worked.settings, **changes))
    worked.start(instance="w1", **changes)
    records = calls(clients=200, live_events=200)
    assert_equal(worked.wait(len(records), **changes), records, hangup_ms=20_000)


def test_a_worker_whose_broker_stops_answering_ends_itself_and_the_next_one_goes_on(tmp_path):
    """Only the embedded broker, for it is one of the test's own: it is frozen in the middle of the stream."""
    if embedded_program() is None:
        pytest.skip("the embedded broker is not installed (noida-db)")
    records = calls(clients=3000, live_events=3000)
    with EmbeddedBroker() as broker:
        settings = Cluster("embedded", broker.address).settings(
            clock="event",
            partitions=PARTITIONS,
            batch_events=BATCH_EVENTS,
            view=False,
            transaction_timeout_seconds=3.0,
        )
        topics.create(settings)
        with Workers(settings, tmp_path) as workers:
            workers.publish(records)
            worker = workers.start(instance="w1", stall_seconds=5.0)
            worker.wait_until(
                lambda: worker.metric("callfunnel_worker_events_consumed_total") > 0, 20, "has no events"
            )
            broker._process.send_signal(signal.SIGSTOP)
            try:
                assert worker.exit_code(25) == 70
            finally:
                broker._process.send_signal(signal.SIGCONT)
            assert "started again" in worker.log
            workers.start(instance="w1")
            assert_equal(workers.wait(len(records)), records)


def test_a_worker_that_is_told_to_stop_while_no_broker_answers_does_not_wait_for_one(tmp_path):
    if embedded_program() is None:
        pytest.skip("the embedded broker is not installed (noida-db)")
    with EmbeddedBroker() as broker:
        settings = Cluster("embedded", broker.address).settings(clock="event", partitions=PARTITIONS)
        topics.create(settings)
        with Workers(settings, tmp_path) as workers:
            worker = workers.start().wait_until_ready()
            broker._process.kill()
            worker.wait_until(
                lambda: "the numbers stand still" in worker.get("/api/v1/funnel")[1],
                30,
                "live without a broker",
            )
            worker.send(signal.SIGTERM)
            assert worker.exit_code(10) == 0
            assert "no broker answers" in worker.log.splitlines()[-1]

"""What `callfunnel topics` finds, makes and mends on a broker, and what it leaves to a person."""

import time

import pytest

from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import free_port
from callfunnel.agents.errors import BrokerUnavailable, TopicsWrong
from callfunnel.agents.kafka import topics
from callfunnel.agents.kafka.connection import admin_client
from callfunnel.schemas.topics import TopicSpec
from integration.workers import alter
from patience import Deadline


def eventually(find):
    """What a broker tells once its metadata has caught up."""
    deadline = Deadline(10)
    while not (found := find()) and not deadline.is_over:
        time.sleep(0.1)
    return found


def test_all_topics_are_missing_until_they_are_created_and_then_all_are_right(broker):
    settings = broker.settings(partitions=3)
    names = [spec.name for spec in topics.wanted(settings)]
    assert [(difference.topic, difference.what) for difference in topics.compare(settings)] == [
        (name, "missing") for name in names
    ]
    assert [(change.topic, change.what) for change in topics.create(settings)] == [
        (name, "created") for name in names
    ]
    assert topics.compare(settings) == ()
    assert topics.require(settings) == 3


def test_creating_twice_does_nothing_the_second_time(broker):
    settings = broker.settings(partitions=1)
    topics.create(settings)
    assert topics.create(settings) == ()


def test_the_other_topics_get_as_many_partitions_as_an_existing_source_has(broker):
    broker.topics("call-events", partitions=5, config={"cleanup.policy": "delete"})
    settings = broker.settings(partitions=2)
    topics.create(settings)
    with admin_client(settings) as admin:
        found = topics.describe(admin, [spec.name for spec in topics.wanted(settings)])
    assert {spec.partitions for spec in found.values()} == {5}


def test_a_setting_that_differs_is_told_and_mended(broker):
    settings = broker.settings(partitions=1)
    topics.create(settings)
    changelog = topics.wanted(settings)[2].name
    alter(settings, changelog, cleanup_policy="delete")
    (difference,) = eventually(lambda: topics.compare(settings))
    assert str(difference) == (
        f"{changelog}: cleanup.policy is delete, not compact; run "
        f"`callfunnel topics fix --broker {broker.address} --profile development` (remedy fix-topics)"
    )
    with pytest.raises(TopicsWrong, match=r"cleanup\.policy is delete, not compact") as error:
        topics.require(settings)
    assert error.value.exit_code == 78
    assert topics.mend(settings) == (topics.Change(changelog, "cleanup.policy", "compact"),)
    assert eventually(lambda: topics.compare(settings) == ())


def test_more_insync_copies_than_there_are_are_never_asked_of_a_topic(broker):
    topics.create(broker.settings(partitions=1))
    production = broker.settings(partitions=1, profile="production")
    remedies = {one.what: one.remedy for one in topics.compare(production)}
    assert remedies.keys() == {"replication_factor", "min.insync.replicas"}
    assert remedies["min.insync.replicas"] == topics.TOO_FEW_COPIES
    assert topics.mend(production) == ()


def test_a_longer_retention_is_as_good_and_is_never_shortened(broker):
    settings = broker.settings(partitions=1)
    topics.create(settings)
    alter(settings, settings.source_topic, retention_ms="-1")
    assert topics.compare(settings) == ()
    alter(settings, settings.source_topic, retention_ms="1000")
    (difference,) = eventually(lambda: topics.compare(settings))
    assert difference.what == "retention.ms"


def test_a_source_whose_partitions_were_raised_is_never_taken_for_right(broker):
    settings = broker.settings(partitions=2)
    topics.create(settings)
    with admin_client(settings) as admin:
        admin.create_partitions({settings.source_topic: 4})
    found = eventually(lambda: topics.compare(settings))
    assert [(difference.what, difference.wanted, difference.found) for difference in found] == [
        ("partitions", "4", "2")
    ] * 3
    assert "(remedy count-anew)" in found[1].remedy
    assert topics.mend(settings) == ()


def test_more_copies_than_brokers_are_refused_with_the_setting_that_helps(broker):
    with pytest.raises(TopicsWrong, match="CALLFUNNEL_PROFILE=development"):
        topics.create(broker.settings(replication_factor=3))


def test_fewer_copies_than_asked_for_are_a_difference_and_more_are_not():
    (spec, *_) = topics.wanted(Settings())
    one, five = (TopicSpec(spec.name, spec.partitions, copies, spec.config) for copies in (1, 5))
    (difference,) = topics.differences([spec], {spec.name: one})
    assert (difference.what, difference.wanted, difference.found) == ("replication_factor", "3", "1")
    assert topics.differences([spec], {spec.name: five}) == ()


def test_a_broker_that_runs_needs_no_waiting(broker):
    told = []
    topics.wait_for_broker(broker.settings(), told.append)
    assert told == []


def test_waiting_for_a_broker_that_is_down_ends_with_its_address_and_the_remedy():
    settings = Settings(broker=f"127.0.0.1:{free_port()}", wait_seconds=6.5)
    told = []
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"Waited [67] s") as error:
        topics.wait_for_broker(settings, told.append)
    assert 6 < time.monotonic() - began < 12
    assert error.value.exit_code == 69
    assert settings.broker in error.value.message
    assert "--broker HOST:PORT" in error.value.message
    (line,) = told
    assert line.startswith(f"No broker answers at {settings.broker} for 5 s; trying again. Start it, or")

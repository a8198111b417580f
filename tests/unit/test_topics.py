"""What a cluster tells of its topics where not every broker knows each of them yet."""

import pytest
from kafka.errors import UnknownTopicOrPartitionError

from callfunnel.agents.kafka import described, topics

UNKNOWN = UnknownTopicOrPartitionError.errno


class Cluster:
    """Answers as an admin client does, each time from the next broker's knowledge."""

    def __init__(self, *knowledge: set[str], brokers: int = 3) -> None:
        self._knowledge = list(knowledge)
        self._brokers = brokers
        self.asked: list[list[str]] = []

    def describe_topics(self, names):
        known = self._knowledge[min(len(self.asked), len(self._knowledge) - 1)]
        self.asked.append(list(names))
        partitions = [{"replica_nodes": [1, 2, 3]}]
        return [
            {
                "name": name,
                "error_code": 0 if name in known else UNKNOWN,
                "partitions": partitions if name in known else [],
            }
            for name in names
        ]

    def describe_cluster(self):
        return {"brokers": range(self._brokers)}

    def describe_configs(self, resources, config_filter):
        return {"topic": {resource.name: {} for resource in resources}}


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(described, "ASK_AGAIN_SECONDS", 0)


def test_a_topic_that_one_broker_does_not_know_yet_is_not_missing():
    cluster = Cluster({"calls"}, {"leads"})
    assert set(topics.describe(cluster, ["calls", "leads"])) == {"calls", "leads"}
    assert cluster.asked == [["calls", "leads"], ["leads"]]


def test_a_topic_that_no_broker_knows_is_missing():
    cluster = Cluster({"calls"})
    assert set(topics.describe(cluster, ["calls", "leads"])) == {"calls"}
    assert len(cluster.asked) == described.ASKED_TIMES


def test_a_single_broker_is_asked_once():
    cluster = Cluster(set(), brokers=1)
    assert topics.describe(cluster, ["calls"]) == {}
    assert len(cluster.asked) == 1

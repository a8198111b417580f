"""What a publisher keeps, without a broker; the rest is in the integration tests."""

import pytest

from agents.publisher import REFUSED_HELD, Publisher


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setattr("agents.publisher.KafkaProducer", lambda **_: None)
    monkeypatch.setattr(Publisher, "_look_at_topic", lambda *_: None)
    return Publisher("nowhere:9092", "call-events")


def test_a_publisher_that_lives_long_remembers_the_newest_refused_events_alone(publisher):
    for _ in range(REFUSED_HELD + 5):
        assert publisher.publish(b"nonsense").reason == "not_json"
    assert [refused.position for refused in publisher.refused] == list(range(6, REFUSED_HELD + 6))
    assert publisher.settled_through == REFUSED_HELD + 5

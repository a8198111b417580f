"""What a publisher keeps, without a broker; the rest is in the integration tests."""

import signal
import sys
from types import SimpleNamespace

import pytest
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from callfunnel.agents.publish.publisher import REFUSED_HELD, Publisher, _Producer


@pytest.fixture
def publisher(monkeypatch):
    monkeypatch.setattr("callfunnel.agents.publish.publisher._Producer", lambda **_: None)
    monkeypatch.setattr(Publisher, "_look_at_topic", lambda *_: None)
    return Publisher("nowhere:9092", "call-events", replay=True)


def test_a_publisher_that_lives_long_remembers_the_newest_refused_events_alone(publisher):
    for _ in range(REFUSED_HELD + 5):
        assert publisher.publish(b"nonsense").reason == "not_json"
    assert [refused.position for refused in publisher.refused] == list(range(6, REFUSED_HELD + 6))
    assert publisher.settled_through == REFUSED_HELD + 5


def test_a_replay_takes_nothing_that_has_not_happened_yet_and_goes_on(publisher):
    """A broker would refuse the whole batch that it is in."""
    publisher._producer = Client()
    ahead = EVENT.replace(b"1740830400000", b'"2099-01-01T00:00:00Z"')
    assert publisher.publish(ahead).reason == "from_the_future"
    assert publisher.publish(EVENT) is None


def test_what_was_not_sent_in_time_is_closed_without_another_word(monkeypatch):
    def close(self, timeout, null_logger):
        raise KafkaTimeoutError("Timeout waiting for future")

    monkeypatch.setattr(KafkaProducer, "close", close)
    forced = []
    client = object.__new__(_Producer)
    client._sender = SimpleNamespace(force_close=lambda: forced.append(True))
    client.close(5.0)
    assert (client._closed, forced) == (True, [True])


class Client:
    """Acknowledges at once."""

    def send(self, *_, **__):
        return SimpleNamespace(is_done=True, exception=None, value=SimpleNamespace(partition=0, offset=7))

    def close(self, timeout):
        pass


EVENT = b'{"event_id":"e","lead_id":"l","type":"dial","occurred_at":1740830400000}'


def test_a_sent_event_is_noted_whole_wherever_ctrl_c_comes(publisher):
    publisher._producer = Client()
    begun, lines = [], 0

    def count(frame, event, _):
        """Ctrl-C at another line of the publisher, or of the client, each time."""
        nonlocal lines
        if frame.f_code.co_name in ("publish", "send", "_settle", "settled", "_undisturbed", "__exit__"):
            lines += event == "line"
            if lines == len(begun):
                sys.settrace(None)
                signal.raise_signal(signal.SIGINT)
        return count

    interrupted = True
    while interrupted:
        begun.append(publisher._position)
        lines, interrupted = 0, False
        try:
            with publisher:
                sys.settrace(count)
                publisher.publish(EVENT)
                publisher.publish(EVENT)
                sys.settrace(None)
        except KeyboardInterrupt:
            interrupted = True
        sys.settrace(None)
        assert publisher.settled == (publisher._position, publisher._position)
    assert len(begun) > 30

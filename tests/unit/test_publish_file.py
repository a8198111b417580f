from collections import deque

import orjson
import pytest

from callfunnel.agents import exit_codes
from callfunnel.agents.config import Settings
from callfunnel.agents.publish.file import LinePublisher, publish_file
from callfunnel.agents.publish.publisher import REFUSED_HELD
from callfunnel.agents.publish.resume import Checkpoint, Done, Lines
from callfunnel.schemas.codec import Rejected


class Broker:
    """Stands in for a publisher: refuses lines that say so, acknowledges when it is told to."""

    def __init__(self):
        self.sent, self.acknowledged, self._last = [], 0, 0
        self._waiting = deque()

    @property
    def settled(self):
        return self._waiting[0] - 1 if self._waiting else self._last, self.acknowledged

    def publish(self, event, *, position):
        self._last = position
        if event == b"bad":
            return Rejected("not_json", "bad")
        self.sent.append(event)
        self._waiting.append(position)
        return None

    def acknowledge(self, count):
        for _ in range(count):
            self._waiting.popleft()
            self.acknowledged += 1

    def flush(self):
        self.acknowledge(len(self._waiting))


def publish(broker, lines, done=None, rate=None):
    told, bytes_read = [], []
    run = LinePublisher(broker, done or Done(), rate=rate)
    run.publish([line + b"\n" for line in lines], told.append, bytes_read.append)
    return run, told, bytes_read


def test_every_line_ends_acknowledged_or_refused_under_its_own_number():
    run, told, bytes_read = publish(Broker(), [b"one", b"", b"bad", b"  two  ", b"bad"])
    assert run.done == Done(line=5, acknowledged=2, refused=2)
    assert [refused.position for refused in told] == [3, 5]
    assert bytes_read == [4 + 1 + 4 + 8 + 4]


def test_spaces_around_an_event_are_not_sent():
    broker = Broker()
    publish(broker, [b"  two \r"])
    assert broker.sent == [b"two"]


def test_a_run_goes_on_behind_what_is_done_and_adds_to_it():
    broker = Broker()
    run, told, _ = publish(broker, [b"three", b"bad", b"five"], done=Done(2, acknowledged=1, refused=1))
    assert broker.sent == [b"three", b"five"]
    assert [refused.position for refused in told] == [4]
    assert run.done == Done(line=5, acknowledged=3, refused=2)


def checksum(lines):
    whole = Lines()
    for line in lines:
        whole.take(line + b"\n")
    return whole.sha256


def test_the_checksum_is_that_of_what_is_done_and_not_of_what_is_read():
    broker, lines = Broker(), [b"one", b"", b"bad", b"two", b"three"]
    broker.flush = lambda: broker.acknowledge(1)
    run, _, _ = publish(broker, lines)
    for line, acknowledge in ((3, 1), (4, 1), (5, 0)):
        assert run.done.line == line
        assert run.lines.sha256 == checksum(lines[:line])
        broker.acknowledge(acknowledge)


def test_the_checksum_goes_on_behind_the_lines_that_were_done_before():
    before = Lines()
    before.take(b"one\n")
    run = LinePublisher(Broker(), Done(1, acknowledged=1), before)
    bytes_read = []
    run.publish([b"two\n"], lambda refused: None, bytes_read.append)
    assert run.done == Done(2, acknowledged=2)
    assert run.lines.sha256 == checksum([b"one", b"two"])
    assert bytes_read == [8]


def test_what_waits_for_its_acknowledgement_is_not_done_and_neither_is_what_comes_behind_it():
    broker = Broker()
    broker.flush = lambda: broker.acknowledge(1)
    run, _, _ = publish(broker, [b"one", b"two", b"bad"])
    assert run.done == Done(line=1, acknowledged=1, refused=0)
    broker.acknowledge(1)
    assert run.done == Done(line=3, acknowledged=2, refused=1)


def test_a_refused_line_that_could_not_be_told_is_left_to_the_next_run():
    def interrupt(refused):
        raise KeyboardInterrupt

    run = LinePublisher(Broker(), Done())
    with pytest.raises(KeyboardInterrupt):
        run.publish([b"bad\n"], interrupt, lambda bytes_read: None)
    assert run.done == Done()


@pytest.mark.parametrize(
    ("line", "acknowledges", "done"),
    [(b"three", True, Done(4, 2)), (b"three", False, Done(2, 1)), (b"bad", False, Done(2, 1))],
)
def test_a_line_is_done_once_wherever_ctrl_c_comes(line, acknowledges, done):
    class Interrupted(Broker):
        def publish(self, event, *, position):
            super().publish(event, position=position)
            if position == 2:
                self.acknowledge(1)
            if position == 4:
                self.acknowledge(acknowledges)
                raise KeyboardInterrupt

    run = LinePublisher(Interrupted(), Done())
    with pytest.raises(KeyboardInterrupt):
        run.publish([b"\n", b"one\n", b"\n", line + b"\n"], lambda refused: None, lambda bytes_read: None)
    assert run.done == done


def test_settled_refusals_are_counted_and_not_held():
    broker = Broker()
    run, told, _ = publish(broker, [b"one", *[b"bad"] * 5_000])
    assert run.done.refused == len(told) == 5_000
    assert not run._refused_ahead


def test_the_report_names_every_refused_line_however_many(monkeypatch, tmp_path, capfdbinary):
    class Publisher(Broker):
        topic_id, last = "", None

        def __init__(self, *settings, **others):
            super().__init__()

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    monkeypatch.setattr("callfunnel.agents.publish.file.Publisher", Publisher)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    file = tmp_path / "events"
    file.write_bytes(b"bad\n" * (REFUSED_HELD + 1))
    checkpoint = Checkpoint(tmp_path / "progress", file, "here")
    code = publish_file(Settings(), file, checkpoint, replay=True, rate=None, as_json=True)
    report = orjson.loads(capfdbinary.readouterr().out)
    assert code == exit_codes.NEGATIVE
    assert [each["line"] for each in report["refusals"]] == list(range(1, REFUSED_HELD + 2))
    assert report["refused"] == REFUSED_HELD + 1


def test_the_rate_is_kept(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("time.sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    publish(Broker(), [b"event"] * 51, rate=20)
    assert clock[0] == pytest.approx(102.5)

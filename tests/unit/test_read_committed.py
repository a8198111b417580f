"""How long the broker may hold back an empty answer. What is read is tested in `tests/contract`."""

from types import SimpleNamespace

import pytest

from callfunnel.agents.kafka.read_committed import QUIET_WAIT_MS, Reader, rest


@pytest.mark.parametrize(
    ("usual_ms", "longer"),
    [(100, [200, 400, 800, QUIET_WAIT_MS, QUIET_WAIT_MS]), (1_500, [1_500, 1_500])],
    ids=["a short wait", "a wait that is longer already"],
)
def test_on_a_quiet_topic_empty_answers_take_longer_until_something_comes(usual_ms, longer):
    fetcher, reader = SimpleNamespace(_fetch_max_wait_ms=usual_ms), Reader()
    for wait_ms in longer:
        rest(fetcher, reader, something_came=False)
        assert fetcher._fetch_max_wait_ms == wait_ms
    rest(fetcher, reader, something_came=True)
    assert fetcher._fetch_max_wait_ms == usual_ms

"""The workers of an integration test: real processes on the test's own topics."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.workers import BATCH_EVENTS, PARTITIONS, Workers

from agents import topics


@pytest.fixture
def clock() -> str:
    """A replay; a test of a live floor says so with a parameter of this name."""
    return "event"


@pytest.fixture
def workers(broker, tmp_path: Path, clock: str) -> Iterator[Workers]:
    """Topics of the test's own, and workers to start on them: small batches, a short session, no view."""
    settings = broker.settings(
        clock=clock,
        partitions=PARTITIONS,
        batch_events=BATCH_EVENTS,
        session_timeout_seconds=6.0,
        heartbeat_seconds=1.0,
        view=False,
    )
    topics.create(settings)
    with Workers(settings, tmp_path) as crew:
        yield crew

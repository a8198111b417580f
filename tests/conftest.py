"""The brokers of the tests: the embedded one and Apache Kafka, started for the first test that asks.

The law: a test marked `broker` runs on both, unless it names one. What this machine cannot run is skipped,
and the last lines of the run name it with its reason.
"""

import itertools
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis
import pytest

from callfunnel.agents.choice import NotBuilt, not_built, sums_for, tables_for
from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import Broker, EmbeddedBroker, embedded_program
from callfunnel.streams.sums import Sums
from callfunnel.streams.tables import Tables
from deploy.kafka import kraft

ASKED_FOR = tuple(os.environ.get("FUNNEL_TEST_BROKERS", "embedded,kafka").split(","))
"""The brokers to test on; `FUNNEL_TEST_BROKERS=embedded` leaves the others out."""

EVERYWHERE = bool(os.environ.get("FUNNEL_TEST_EVERYWHERE"))
"""Run on both brokers, too, what is marked `broker("kafka")`: groups of several workers, where the broker
decides, and the embedded one takes its time."""

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("gate", deadline=None)
hypothesis.settings.register_profile("long", deadline=None, max_examples=4_000)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gate"))

# A shell starts what runs in its background with SIGINT ignored, and children inherit that: Ctrl-C would be
# tested on programs that cannot hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="module", params=("definition", "core"))
def tables(request: pytest.FixtureRequest) -> type[Tables]:
    """The tables of a partition: a test that asks for them runs with the definition's and with the core's."""
    try:
        return tables_for(request.param)
    except NotBuilt as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=("definition", "core"))
def sums(request: pytest.FixtureRequest) -> type[Sums]:
    """What adds up rows for a view: in Python, and the core's."""
    if request.param == "core" and (why := not_built()):
        pytest.skip(why)
    return sums_for(request.param)


_numbers = itertools.count(1)


class Cluster:
    """A broker as one test sees it: an address, and names of its own on it."""

    def __init__(self, kind: str, address: str) -> None:
        self.kind = kind
        self.address = address
        self.prefix = f"t{os.getpid()}-{next(_numbers)}"

    def settings(self, **overrides: Any) -> Settings:
        """Settings for this broker, with topics and a group that no other test has."""
        own = {
            "broker": self.address,
            "profile": "development",
            "app_id": f"{self.prefix}-app",
            "source_topic": f"{self.prefix}-call-events",
            "dead_letter_topic": f"{self.prefix}-call-events.dlq",
            "wait_seconds": 10.0,
        }
        return Settings.from_environ({}, **own | overrides)

    def topics(
        self, *names: str, partitions: int = 1, config: dict[str, str] | None = None
    ) -> tuple[str, ...]:
        """Create topics; their full names."""
        from callfunnel.agents.kafka.connection import admin_client

        full = tuple(f"{self.prefix}-{name}" for name in names)
        options = {"num_partitions": partitions, "replication_factor": 1, "configs": config or {}}
        with admin_client(self.settings()) as admin:
            admin.create_topics(dict.fromkeys(full, options), wait_for_metadata=True)
        return full


def _embedded() -> Broker:
    if embedded_program() is None:
        pytest.skip("the embedded broker is not installed (noida-db)")
    return EmbeddedBroker()


def _kafka() -> Broker:
    if kraft.lacking():
        pytest.skip(kraft.lacking())
    return kraft.Cluster()


_MAKERS = {"embedded": _embedded, "kafka": _kafka}


@pytest.fixture(scope="session")
def _address() -> Iterator[Callable[[str], str]]:
    """Where the broker of a kind listens; it runs from the first question to the end."""
    with ExitStack() as stack:
        yield cache(lambda kind: stack.enter_context(_MAKERS[kind]()).address)


@pytest.fixture(scope="session")
def _kind(request: pytest.FixtureRequest) -> str:
    if request.param not in ASKED_FOR:
        pytest.skip(f"FUNNEL_TEST_BROKERS={','.join(ASKED_FOR)} leaves {request.param} out")
    return request.param


@pytest.fixture
def broker(_kind: str, _address: Callable[[str], str]) -> Cluster:
    """A running broker; the test runs once on each kind."""
    return Cluster(_kind, _address(_kind))


@pytest.fixture
def clock() -> str:
    """A replay; a test of a live floor says so with a parameter of this name."""
    return "event"


@pytest.fixture
def workers(broker: Cluster, tmp_path: Path, clock: str) -> Iterator[Any]:
    """Topics of the test's own, and workers to start on them: small batches, a short session, no view."""
    from callfunnel.agents.kafka import topics
    from integration.workers import BATCH_EVENTS, PARTITIONS, Workers

    settings = broker.settings(
        clock=clock,
        partitions=PARTITIONS,
        batch_events=BATCH_EVENTS,
        batch_spacing_seconds=0.0,
        session_timeout_seconds=6.0,
        heartbeat_seconds=1.0,
        view=False,
    )
    topics.create(settings)
    with Workers(settings, tmp_path) as crew:
        yield crew


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "broker" in metafunc.fixturenames:
        alone = metafunc.definition.get_closest_marker("broker")
        kinds = alone.args if alone and not EVERYWHERE else _MAKERS
        metafunc.parametrize("_kind", list(kinds), indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "broker" in getattr(item, "fixturenames", ()):
            item.add_marker("broker")
    # What takes long comes first: at the end, all processes have something short to do.
    items.sort(key=lambda item: not {"integration", "e2e"} & {*item.path.parts})


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    yield
    left_out = Counter(report.longrepr[2] for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.section("left out")
    for reason, tests in left_out.most_common():
        terminalreporter.line(f"{tests} × {reason.removeprefix('Skipped: ')}")
    if not left_out:
        terminalreporter.line("nothing")

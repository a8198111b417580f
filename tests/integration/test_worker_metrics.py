"""What a worker serves at /metrics: the oracle's numbers, in a form that Prometheus accepts."""

import shutil
import subprocess
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from callfunnel.streams import oracle
from callfunnel.streams.measures import SHOWN
from integration.workers import PARTITIONS, Worker, assert_equal, calls
from patience import Deadline


def samples(worker: Worker, name: str) -> dict[tuple[str, ...], float]:
    """The samples of this name; the label values in the order of the labels' names."""
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(worker.get("/metrics")[1])
        for sample in family.samples
        if sample.name == name
    }


@pytest.fixture
def told(workers):
    """A worker with a view that has folded all records, these records and the tables it left."""
    records = calls(clients=800, live_events=2000)
    worker = workers.start(view=True)
    workers.publish(records)
    left = workers.wait(len(records))
    worker.wait_until_ready()
    assert_equal(left, records)
    return worker, records, left


def test_metrics_are_the_numbers_of_the_oracle_over_all_time(told):
    worker, records, left = told
    expected = {
        (dimensions[0], shown.name, dimensions[1]): float(columns.get(shown.column, 0))
        for (resolution, _, rollup, *dimensions), columns in oracle.total(left.tables).items()
        if (resolution, rollup) == ("all", "campaign+source")
        for shown in SHOWN
    }
    deadline = Deadline(10)
    while samples(worker, "callfunnel_events_total") != expected and not deadline.is_over:
        time.sleep(0.2)
    assert samples(worker, "callfunnel_events_total") == expected
    assert sum(samples(worker, "callfunnel_worker_events_consumed_total").values()) == len(records)
    assert (
        sum(samples(worker, "callfunnel_worker_events_duplicate_total").values())
        == left.total("duplicates")
        > 0
    )
    assert samples(worker, "callfunnel_worker_partitions")["active",] == PARTITIONS


def test_a_worker_that_is_ready_and_has_counted_everything_says_so(told):
    worker, _, _ = told
    began = time.time()
    # A reader may see a transaction committed before its writer has heard of it.
    nothing_left = {(str(number), worker.settings.source_topic): 0.0 for number in range(PARTITIONS)}
    for name, expected in (("worker_consumer_lag", nothing_left), ("view_lag_records", {(): 0.0})):
        worker.wait_until(
            lambda name=name, expected=expected: samples(worker, f"callfunnel_{name}") == expected,
            10,
            f"{name} does not become {expected}",
        )
    assert samples(worker, "callfunnel_worker_ready") == {(): 1.0}
    assert samples(worker, "callfunnel_view_state")["current",] == 1.0
    for name in ("worker_broker_answer", "view_broker_answer", "view_snapshot"):
        worker.wait_until(
            lambda name=name: samples(worker, f"callfunnel_{name}_timestamp_seconds")[()] > began,
            10,
            f"does not renew {name}",
        )


def test_prometheus_has_nothing_to_say_against_them(told):
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    text = told[0].get("/metrics")[1]
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=30
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")

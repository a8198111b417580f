import shutil
import subprocess
from dataclasses import replace
from datetime import UTC
from itertools import product

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from callfunnel.agents.engine.metrics import EngineMetrics, short
from callfunnel.agents.view.exposition import (
    OTHER,
    Exposition,
    accepts_openmetrics,
    label_value,
    new_registry,
)
from callfunnel.agents.view.snapshot import Funnel, Standing
from callfunnel.schemas.codec import REASONS
from callfunnel.streams.measures import SHOWN
from callfunnel.streams.metrics import BY_NAME, CATALOGUE, OPEN, OWNED
from callfunnel.streams.rows import POSITION_KEY
from callfunnel.streams.windows import WINDOWS

NOW = 1_750_000_020
MINUTE, HOUR, DAY = NOW - NOW % 60, NOW - NOW % 3_600, NOW - NOW % 86_400
COLUMNS = {
    "events_created": 2_000_000, "events_dialed": 7, "events_reached": 3, "dm_hangups": 1,
    "machine_answers": 2, "leads_created": 5, "leads_dialed": 4, "implied": 1, "awaited": 5, "attempt_60": 2,
    "attempt_900": 1, "attempt_inf": 1, "attempt_ms": 90_123_456, "connect_300": 1, "connect_ms": 250,
    "uncalled": 1,
}  # fmt: skip
SERIES = len(WINDOWS) * len(SHOWN)
"""Of a label set, in a family by window and stage."""


def write(funnel, rollup, *row, columns=COLUMNS, partition=0, resolutions=("1m", "1h", "1d", "all")):
    for resolution, pane in (("1m", MINUTE - 300), ("1h", HOUR), ("1d", DAY), ("all", 0)):
        if resolution in resolutions:
            funnel.apply(partition, orjson.dumps([resolution, pane, rollup, *row]), orjson.dumps(columns))


def funnel_of(*rows):
    funnel = Funnel(UTC)
    funnel.apply(0, POSITION_KEY, b'{"offset":9,"watermark_ms":1750000012345,"fold":"x"}')
    funnel.apply(1, POSITION_KEY, b'{"offset":9,"watermark_ms":0,"fold":"x"}')
    for row in rows:
        write(funnel, *row)
    return funnel


def exposition(funnel, **options):
    snapshot = funnel.snapshot(NOW)
    return Exposition(lambda: Standing("current", snapshot), CollectorRegistry(), **options)


def series(page: Exposition) -> dict:
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parse_text(page.render(openmetrics=False).decode())
        for sample in family.samples
    }


def value(page: Exposition, name: str, **labels) -> float:
    return series(page)[(name, *sorted(labels.items()))]


label_text = st.text(max_size=80) | st.sampled_from(
    ['say "hi"\\', "100 %s %d %%", "a\nb", "Zürich ☎", "", "\x00\x1f", "{}"]
)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(label_text, label_text), max_size=6),
    st.sampled_from(["id", "hashed", "off"]),
    st.integers(1, 200),
)
def test_both_formats_are_what_the_client_library_would_write(rows, agent_label, limit):
    funnel = funnel_of(
        *(("campaign+source", *row) for row in rows),
        *(("team+agent", *row) for row in rows),
        *(("location", row[0]) for row in rows),
    )
    page = exposition(funnel, agent_label=agent_label, agent_key=b"k", series_limit=limit)
    page.collect()  # what is said about the page itself settles with the first look
    assert page._render(page.families(), False) == generate_latest(page)
    assert page._render(page.families(), True) + b"# EOF\n" == generate_openmetrics(page)


def test_a_page_can_be_read_back_in_both_formats_and_holds_no_series_twice():
    registry = new_registry()
    EngineMetrics(registry).batch_seconds.observe(0.1)
    snapshot = funnel_of(("campaign+source", "a\x00b", "web"), ("campaign+source", "ab", "web")).snapshot(NOW)
    page = Exposition(lambda: Standing("current", snapshot), registry)
    for openmetrics, parse in ((False, parse_text), (True, parse_openmetrics)):
        text = page.render(openmetrics).decode()
        names = [(s.name, *sorted(s.labels.items())) for family in parse(text) for s in family.samples]
        assert len(names) == len(set(names))
        assert ("callfunnel_worker_batch_seconds_count",) in names
        assert ("process_open_fds",) in names
        assert not any(name.endswith("_created") for name, *_ in names)
    assert text.endswith("# EOF\n")
    assert text.count("# EOF") == 1


def test_the_numbers_of_the_rows_arrive_under_their_names():
    page = exposition(
        funnel_of(("campaign+source", "spring", "web"), ("team+agent", "red", "ann"), ("location", "Kiel"))
    )
    spring = {"campaign": "spring", "source": "web"}
    assert value(page, "callfunnel_events_total", funnel_stage="created", **spring) == 2_000_000
    assert value(page, "callfunnel_events_total", funnel_stage="won", **spring) == 0
    assert value(page, "callfunnel_window_events", window="1h", funnel_stage="dialed", **spring) == 7
    assert value(page, "callfunnel_window_events", window="5m", funnel_stage="dialed", **spring) == 0
    assert value(page, "callfunnel_window_leads", window="today", funnel_stage="dialed", **spring) == 4
    assert (
        value(
            page,
            "callfunnel_agent_window_leads",
            window="1d",
            funnel_stage="created",
            team="red",
            agent="ann",
        )
        == 5
    )
    assert (
        value(page, "callfunnel_location_window_events", window="1d", funnel_stage="reached", location="Kiel")
        == 3
    )
    assert value(page, "callfunnel_window_dm_hangups", window="1h", campaign="spring") == 1
    assert value(page, "callfunnel_window_machine_answers", window="1h", campaign="spring") == 2
    assert value(page, "callfunnel_window_implied_arrivals", window="1h", campaign="spring") == 1
    assert value(page, "callfunnel_window_leads_due", window="5m", campaign="spring") == 5
    assert value(page, "callfunnel_window_leads_met", window="5m", campaign="spring") == 2
    assert (
        value(page, "callfunnel_lead_response_seconds_bucket", clock="attempt", campaign="spring", le="60.0")
        == 2
    )
    assert (
        value(page, "callfunnel_lead_response_seconds_bucket", clock="attempt", campaign="spring", le="+Inf")
        == 4
    )
    assert value(page, "callfunnel_lead_response_seconds_gcount", clock="attempt", campaign="spring") == 4
    assert value(page, "callfunnel_lead_response_seconds_gsum", clock="connect", campaign="spring") == 0.25
    assert value(page, "callfunnel_leads_uncalled", campaign="spring", age="5-15m") == 1
    assert value(page, "callfunnel_oldest_uncalled_lead_timestamp_seconds", campaign="spring") == MINUTE - 300
    assert value(page, "callfunnel_watermark_timestamp_seconds", partition="0") == 1_750_000_012.345
    assert value(page, "callfunnel_view_rows") == 12


def test_sources_of_a_campaign_are_added_up_where_the_label_is_the_campaign():
    page = exposition(funnel_of(("campaign+source", "spring", "web"), ("campaign+source", "spring", "mail")))
    assert value(page, "callfunnel_leads_uncalled", campaign="spring", age="5-15m") == 2
    assert (
        value(page, "callfunnel_lead_response_seconds_gsum", clock="attempt", campaign="spring")
        == 180_246.912
    )


def test_of_the_sources_of_a_campaign_the_oldest_lead_that_waits_is_told():
    funnel = funnel_of(("campaign+source", "spring", "web"))
    for resolution, pane in (("1m", MINUTE - 3_000), ("1h", HOUR), ("1d", DAY), ("all", 0)):
        key = orjson.dumps([resolution, pane, "campaign+source", "spring", "mail"])
        funnel.apply(0, key, orjson.dumps({"uncalled": 1}))
    oldest = funnel.snapshot(NOW).uncalled
    assert oldest["spring", "mail"].oldest_s < oldest["spring", "web"].oldest_s == MINUTE - 300
    told = value(exposition(funnel), "callfunnel_oldest_uncalled_lead_timestamp_seconds", campaign="spring")
    assert told == oldest["spring", "mail"].oldest_s


def test_every_stage_of_a_label_set_is_there_from_the_start():
    page = exposition(funnel_of(("campaign+source", "spring", "web")))
    stages = {dict(key[1:])["funnel_stage"] for key in series(page) if key[0] == "callfunnel_events_total"}
    assert stages == {
        *("created", "dialed", "connected", "reached", "qualified", "won"),
        *("appointment", "demo", "proposal", "touch"),
    }


def test_a_label_set_that_was_silent_for_two_days_has_no_windows_but_keeps_its_totals():
    funnel = funnel_of()
    write(funnel, "campaign+source", "old", "web", resolutions=("all",))
    key = orjson.dumps(["1d", DAY - 300 * 86_400, "campaign+source", "old", "web"])
    funnel.apply(0, key, orjson.dumps(COLUMNS))
    names = {key[0] for key in series(exposition(funnel)) if ("campaign", "old") in key}
    assert "callfunnel_window_events" not in names
    assert {
        "callfunnel_events_total",
        "callfunnel_lead_response_seconds_bucket",
        "callfunnel_leads_uncalled",
    } <= names


def test_a_family_is_exposed_of_the_windows_that_it_names():
    metric = BY_NAME["callfunnel_window_dm_hangups"]
    reads = replace(metric.reads, windows=("1h", "today"))
    page = exposition(funnel_of(("campaign+source", "spring", "web")))
    family = page._sums(replace(metric, reads=reads), reads, page._standing().snapshot)
    assert [sample.labels for sample in family.layout] == [(("window", "1h"),), (("window", "today"),)]
    assert family.rows == {("spring",): (1, 1)}


def test_above_the_limit_the_sum_stays_right():
    funnel = funnel_of(*(("campaign+source", f"c{n}", "web") for n in range(10)))
    page = exposition(funnel, series_limit=4 * SERIES)
    dials = {
        dict(key[1:])["campaign"]: n
        for key, n in series(page).items()
        if key[0] == "callfunnel_window_events" and {("window", "1h"), ("funnel_stage", "dialed")} <= set(key)
    }
    assert dials == {"c0": 7, "c1": 7, "c2": 7, OTHER: 49}
    assert value(page, "callfunnel_view_series", family="callfunnel_window_events") == 4 * SERIES
    assert value(page, "callfunnel_view_series_overflowed", family="callfunnel_window_events") == 7 * SERIES


few_names = st.sampled_from(["a", "b", "c\x00", "c", "__other__"])
few_rows = st.lists(st.tuples(few_names, few_names, st.integers(1, 3)), max_size=12)


def merged(merge, rows, layout):
    return [merge(values) for values in zip(*rows, strict=True)] or [0] * len(layout)


@given(few_rows, few_rows, st.sampled_from(["id", "off"]), st.integers(1, 150))
def test_what_is_above_the_limit_is_the_sum_of_the_rows_that_are_left_out(first, later, agent_label, limit):
    funnel = funnel_of()
    snapshots = []
    pages = [
        Exposition(
            lambda: Standing("current", snapshots[-1]),
            CollectorRegistry(),
            agent_label=agent_label,
            series_limit=series_limit,
        )
        for series_limit in (limit, 1_000_000)
    ]
    before = {}
    for rows in (first, later):
        for one, other, times in rows:
            columns = {column: n * times for column, n in COLUMNS.items()}
            for row in (("campaign+source", one, other), ("team+agent", one, other), ("location", one)):
                write(funnel, *row, columns=columns, partition=times % 2)
        snapshots.append(funnel.snapshot(NOW))
        limited, whole = ({family.metric.name: family for family in page.families()} for page in pages)
        for metric in CATALOGUE:
            if metric.where != "view" or "partition" in metric.labels or "_view_" in metric.name:
                continue
            shown, everything = limited[metric.name].rows, whole[metric.name].rows
            merge = min if metric.name.startswith("callfunnel_oldest") else sum
            own = {row: values for row, values in shown.items() if OTHER not in row}
            room = max(1, limit // len(limited[metric.name].layout) - 1)
            old = [row for row in everything if row in before.get(metric.name, ())]
            new = [row for row in everything if row not in old]
            assert set(own) == {*old, *new[: room - len(old)]}
            assert own == {row: values for row, values in everything.items() if row in own}
            assert list(own) == [row for row in everything if row in own]
            layout = limited[metric.name].layout
            if "gaugehistogram" in metric.type:  # seconds are no whole numbers
                assert merged(merge, shown.values(), layout) == pytest.approx(
                    merged(merge, everything.values(), layout)
                )
            else:
                assert merged(merge, shown.values(), layout) == merged(merge, everything.values(), layout)
            before[metric.name] = own


def test_a_campaign_that_is_called_as_the_overflow_is_not_mixed_with_it():
    names = ("__other__", "___other__", "_other__", "a", "b", "c", "d")
    page = exposition(
        funnel_of(*(("campaign+source", name, "web") for name in names)), series_limit=6 * SERIES
    )
    dials = {
        dict(key[1:])["campaign"]: n
        for key, n in series(page).items()
        if key[0] == "callfunnel_window_events" and {("window", "1h"), ("funnel_stage", "dialed")} <= set(key)
    }
    shown = {"___other__": 7, "____other__": 7, "_other__": 7, "a": 7, "b": 7}
    assert dials == shown | {OTHER: 14}


names = st.text("_aother", min_size=1, max_size=12)


@given(names, names)
def test_different_names_are_different_labels_and_none_is_that_of_the_overflow(one, other):
    assert (label_value(one) == label_value(other)) == (one == other)
    assert label_value(one) != OTHER


def test_a_label_set_that_has_its_series_keeps_them_when_others_come():
    funnel = funnel_of(("campaign+source", "m", "web"))
    snapshots = [funnel.snapshot(NOW)]
    page = Exposition(lambda: Standing("current", snapshots[-1]), CollectorRegistry(), series_limit=2 * 6)
    page.render(False)
    write(funnel, "campaign+source", "a", "web")
    snapshots.append(funnel.snapshot(NOW))
    campaigns = {dict(key[1:])["campaign"] for key in series(page) if key[0] == "callfunnel_events_total"}
    assert campaigns == {"m", OTHER}


def test_an_agent_is_shown_as_configured():
    funnel = funnel_of(
        ("team+agent", "red", "ann"), ("team+agent", "red", "none"), ("team+agent", "red", "bob")
    )

    def agents(**options):
        return {
            dict(key[1:]).get("agent"): n
            for key, n in series(exposition(funnel, **options)).items()
            if key[0] == "callfunnel_agent_window_events"
            and {("window", "1h"), ("funnel_stage", "dialed")} <= set(key)
        }

    assert agents() == {"ann": 7, "bob": 7, "none": 7}
    # printf ann | openssl dgst -sha256 -hmac secret
    assert agents(agent_label="hashed", agent_key=b"secret") == {
        "aad4e6199b77": 7,
        "9c90819f8837": 7,
        "none": 7,
    }
    assert agents(agent_label="off") == {None: 21}


def test_the_catalogue_and_the_page_name_the_same_families():
    page = exposition(funnel_of(("campaign+source", "spring", "web")))
    assert {family.metric.name for family in page.families()} == {
        m.name for m in CATALOGUE if m.where == "view"
    }
    for family in page.families():
        names = {label for sample in family.layout for label, _ in sample.labels} - {"le"}
        assert names | set(family.labels) == set(family.metric.labels), family.metric.name


def test_every_metric_of_the_worker_is_made_from_the_catalogue():
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    metrics.events_consumed.labels("call-events", "0").inc(3)
    metrics.build_info.info({"version": "1", "python": "3.11", "tables": "core"})
    declared = {m for m in CATALOGUE if m.where == "worker"}
    assert EngineMetrics.__annotations__ == {short(m): type(getattr(metrics, short(m))) for m in declared}
    exposed = {family.name for family in registry.collect()}
    assert exposed == {
        m.name.removesuffix("_total").removesuffix("_info") for m in CATALOGUE if m.where == "worker"
    }
    assert (
        registry.get_sample_value(
            "callfunnel_worker_events_consumed_total", {"topic": "call-events", "partition": "0"}
        )
        == 3
    )
    assert len(BY_NAME) == len(CATALOGUE)


@pytest.mark.parametrize("metric", [m for m in CATALOGUE if m.labels], ids=lambda metric: metric.name)
def test_each_label_is_closed_or_of_a_partition_or_open_with_a_reason(metric):
    """`increase()` sees nothing of a first value: what can be known beforehand has to be there before."""
    if metric.type == "counter":
        assert [label for label in metric.labels if label not in {*metric.values, *OWNED, *OPEN}] == []
    assert not OPEN.keys() & {*metric.values, *OWNED}
    assert all(metric.values.values()), f"{metric.name}: a closed label has no values"


def samples(registry, name):
    return {
        tuple(value for _, value in sorted(sample.labels.items())): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_what_is_known_beforehand_is_there_at_0_before_anything_is_counted():
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    for metric in CATALOGUE:
        if metric.where == "worker" and metric.labels and set(metric.labels) == metric.values.keys():
            of_each = product(*(metric.values[label] for label in sorted(metric.labels)))
            assert samples(registry, metric.name) == dict.fromkeys(of_each, 0.0), metric.name
    assert samples(registry, "callfunnel_worker_events_rejected_total").keys() == {(why,) for why in REASONS}
    assert samples(registry, "callfunnel_worker_source_gap_events_total") == {}
    metrics.own("call-events", 3)
    counted = {m.name: m for m in CATALOGUE if m.where == "worker" and m.type == "counter"}
    of_a_partition = [name for name, metric in counted.items() if "partition" in metric.labels]
    assert {name: samples(registry, name) for name in of_a_partition} == {
        "callfunnel_worker_events_consumed_total": {("3", "call-events"): 0.0},
        "callfunnel_worker_source_gap_events_total": {("3",): 0.0},
    }


def test_a_gauge_has_the_series_that_were_told_and_no_others():
    registry = CollectorRegistry()
    metrics = EngineMetrics(registry)
    metrics.tell(metrics.consumer_lag, {("call-events", "0"): 7, ("call-events", "1"): 0})
    metrics.tell(metrics.consumer_lag, {("call-events", "1"): 2})
    assert samples(registry, "callfunnel_worker_consumer_lag") == {("1", "call-events"): 2}


def test_each_record_of_the_source_has_one_outcome():
    funnel = Funnel(UTC)
    position = {
        "offset": 20, "watermark_ms": 1, "fold": "x", "applied": 9, "duplicates": 2, "rejected": 3,
        "rerouted": 1, "lost": 5, "lost_at_ms": 1_750_000_000_500,
    }  # fmt: skip
    funnel.apply(3, POSITION_KEY, orjson.dumps(position))
    funnel.apply(4, POSITION_KEY, b'{"offset":0,"watermark_ms":-1,"fold":"x"}')
    page = exposition(funnel)
    outcomes = {
        labels["outcome"]: n
        for (name, *pairs), n in series(page).items()
        for labels in (dict(pairs),)
        if name == "callfunnel_source_records_total" and labels["partition"] == "3"
    }
    assert outcomes == {"applied": 9, "duplicate": 2, "rejected": 3, "rerouted": 1}
    assert value(page, "callfunnel_source_records_total", partition="4", outcome="rejected") == 0
    assert value(page, "callfunnel_source_lost_records", partition="3") == 5
    assert value(page, "callfunnel_source_lost_records", partition="4") == 0
    found = {
        key: n for key, n in series(page).items() if key[0] == "callfunnel_source_loss_timestamp_seconds"
    }
    assert found == {("callfunnel_source_loss_timestamp_seconds", ("partition", "3")): 1_750_000_000.5}


def test_what_the_view_tells_of_itself_needs_no_numbers():
    registry = CollectorRegistry()
    standing = Standing("stale", complete_s=12.5, answered_s=13.5, lag=7, source_lags={0: 4, 10: 0})
    page = Exposition(lambda: standing, registry)
    found = series(page)
    assert {key[0] for key in found} == {
        "callfunnel_view_state", "callfunnel_view_lag_records", "callfunnel_view_source_lag_records",
        "callfunnel_view_snapshot_timestamp_seconds", "callfunnel_view_broker_answer_timestamp_seconds",
    }  # fmt: skip
    assert sum(n for key, n in found.items() if key[0] == "callfunnel_view_state") == 1
    assert value(page, "callfunnel_view_state", state="stale") == 1
    assert value(page, "callfunnel_view_lag_records") == 7
    assert value(page, "callfunnel_view_source_lag_records", partition="10") == 0
    page = Exposition(lambda: Standing("connecting"), registry)
    assert {key[0] for key in series(page)} == {"callfunnel_view_state"}
    assert series(Exposition(None, registry)) == {}


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", False),
        ("*/*", False),
        ("text/html,application/xhtml+xml,*/*;q=0.8", False),
        ("application/openmetrics-text", True),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            True,
        ),
        ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5", False),
        ("text/plain;version=0.0.4,application/openmetrics-text;version=1.0.0;q=0.5", False),
        ('application/openmetrics-text; version="1.0.0"; escaping=allow-utf-8', True),
        ("application/openmetrics-text;version=nonsense", False),
    ],
)
def test_the_format_is_the_first_one_that_the_client_accepts(accept, expected):
    assert accepts_openmetrics(accept) is expected


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say():
    registry = new_registry()
    metrics = EngineMetrics(registry)
    metrics.build_info.info({"version": "1", "python": "3.11", "tables": "core"})
    metrics.events_consumed.labels("call-events", "0").inc()
    snapshot = funnel_of(("campaign+source", "spring", "web"), ("team+agent", "red", "ann")).snapshot(NOW)
    page = Exposition(lambda: Standing("current", snapshot), registry).render(openmetrics=False)
    said = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, check=False)
    assert (said.returncode, said.stdout, said.stderr) == (0, b"", b"")

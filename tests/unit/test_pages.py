import asyncio
import gc
import gzip
import socket
import time
import weakref
from datetime import UTC
from types import SimpleNamespace

import orjson
import pytest
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client import CollectorRegistry

from callfunnel.agents.config import Settings
from callfunnel.agents.engine.metrics import EngineMetrics
from callfunnel.agents.errors import SettingError
from callfunnel.agents.view.exposition import OPENMETRICS, TEXT, Exposition
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import Funnel, Standing
from callfunnel.streams.rows import POSITION_KEY
from callfunnel.streams.windows import WINDOWS_AND_ALL
from patience import Deadline

NOW = 1_750_000_020
MINUTE, HOUR, DAY = NOW - NOW % 60, NOW - NOW % 3_600, NOW - NOW % 86_400
NASTY = '<script>alert("1")</script>'


def snapshot_of(*rows):
    funnel = Funnel(UTC)
    funnel.apply(0, POSITION_KEY, b'{"offset":9,"watermark_ms":1750000010500,"fold":"x"}')
    for campaign, source, columns in rows:
        for resolution, pane in (("1m", MINUTE - 300), ("1h", HOUR), ("1d", DAY), ("all", 0)):
            key = orjson.dumps([resolution, pane, "campaign+source", campaign, source])
            funnel.apply(0, key, orjson.dumps(columns))
    return funnel.snapshot(NOW)


FILLED = snapshot_of(
    (
        "spring",
        "web",
        {
            "events_created": 10, "events_dialed": 20, "events_reached": 5, "dm_hangups": 2,
            "leads_created": 10, "leads_reached": 3, "leads_qualified": 2, "leads_won": 1, "awaited": 10,
            "attempt_60": 4, "attempt_600": 1, "attempt_ms": 500_000, "uncalled": 3,
        },
    ),
    (NASTY, "web", {"events_dialed": 5, "leads_dialed": 5}),
)  # fmt: skip


def view(snapshot=FILLED, verdict="live", reason="", failure=None, delay_s=9.5):
    state = verdict if snapshot is None else "current"
    standing = Standing(state, snapshot, verdict, reason, source_lags={0: 4})

    async def fresh():
        """Its numbers do not change."""

    return SimpleNamespace(
        standing=lambda: standing,
        fresh=fresh,
        not_ready=lambda: reason,
        failure=failure,
        now_s=NOW,
        delay_s=delay_s,
    )


def pages(served, *, not_ready=lambda: None, port=0) -> Pages:
    registry = CollectorRegistry()
    EngineMetrics(registry)
    exposition = Exposition(served.standing, registry)
    return Pages("127.0.0.1", port, view=served, exposition=exposition, not_ready=not_ready)


def ask(served, *requests, not_ready=lambda: None):
    """The answers to (method, path, headers), asked one after the other."""

    async def run():
        answers = []
        async with TestClient(
            TestServer(pages(served, not_ready=not_ready).app()), auto_decompress=False
        ) as client:
            for method, path, headers in requests:
                answer = await client.request(method, path, headers={"Accept-Encoding": "identity"} | headers)
                answers.append(
                    SimpleNamespace(status=answer.status, headers=answer.headers, body=await answer.read())
                )
        return answers

    return asyncio.run(run())


def get(served, path, **headers):
    return ask(served, ("GET", path, headers))[0]


class Circle:
    """As a closed connection is one: nothing but the collector frees it."""

    def __init__(self):
        self.itself = self


def test_closed_connections_do_not_wait_for_the_collector_that_comes_seldom(monkeypatch):
    monkeypatch.setattr("callfunnel.agents.view.http._COLLECT_SECONDS", 0.05)
    served = pages(view())
    gc.disable()
    served.start()
    try:
        left = weakref.ref(Circle())
        deadline = Deadline(10)
        while left() is not None:
            assert not deadline.is_over, "nobody collects"
            time.sleep(0.01)
    finally:
        gc.enable()
        served.stop()


@pytest.mark.parametrize("failure", [None, RuntimeError("no row")])
def test_while_the_view_is_not_current_only_the_engine_tells_of_itself(failure):
    answer = get(view(None, "stale", "no broker has answered for 17 s", failure), "/metrics")
    assert answer.status == 200
    lines = [line for line in answer.body.decode().splitlines() if not line.startswith("#")]
    assert 'callfunnel_view_state{state="stale"} 1.0' in lines
    assert 'callfunnel_view_state{state="current"} 0.0' in lines
    assert 'callfunnel_view_source_lag_records{partition="0"} 4.0' in lines
    assert "callfunnel_worker_rebalances_total 0.0" in lines
    of_the_engine = ("callfunnel_view_", "callfunnel_worker_")
    assert [line for line in lines if not line.startswith(of_the_engine)] == []


def test_metrics_come_in_the_format_that_is_asked_for():
    plain, open_, zipped = ask(
        view(),
        ("GET", "/metrics", {}),
        ("GET", "/metrics", {"Accept": "application/openmetrics-text;version=1.0.0"}),
        ("GET", "/metrics", {"Accept-Encoding": "gzip"}),
    )
    assert plain.headers["Content-Type"] == TEXT
    assert (
        b'callfunnel_events_total{campaign="spring",funnel_stage="dialed",source="web"} 20.0\n' in plain.body
    )
    assert open_.headers["Content-Type"] == OPENMETRICS
    assert open_.body.endswith(b"# EOF\n")
    assert zipped.headers["Content-Encoding"] == "gzip"
    assert b"callfunnel_events_total" in gzip.decompress(zipped.body)


def test_scrapes_at_the_same_time_share_one_rendering():
    served = view()
    under_test = pages(served)
    renderings = []
    render = under_test._exposition.render
    under_test._exposition.render = lambda openmetrics: renderings.append(openmetrics) or render(openmetrics)

    async def run():
        async with TestClient(TestServer(under_test.app())) as client:
            answers = await asyncio.gather(*(client.get("/metrics") for _ in range(10)))
            return {await answer.read() for answer in answers}

    assert len(asyncio.run(run())) == 1
    assert renderings == [False]


def test_the_api_says_the_funnel_with_every_numerator_and_denominator():
    answer = get(view(), "/api/v1/funnel?campaign=spring")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    funnel = orjson.loads(answer.body)
    assert funnel["window"] == "1h"
    assert funnel["stages"][1] == {"stage": "dialed", "events": 20, "leads": 0}
    rates = {
        rate["name"]: (rate["numerator"], rate["denominator"], rate["band"]) for rate in funnel["ratios"]
    }
    assert rates == {
        "reach": (3, 20, "standard"),
        "qualification": (2, 3, None),
        "close": (1, 2, None),
        "conversion": (1, 10, None),
    }
    assert (funnel["response"]["met"], funnel["response"]["due"], funnel["response"]["band"]) == (
        4,
        10,
        "critical",
    )
    assert funnel["response"]["attempt"]["mean_seconds"] == 100.0
    assert funnel["uncalled"]["leads"] == funnel["uncalled"]["ages"]["5-15m"] == 3
    assert funnel["uncalled"]["oldest_timestamp_seconds"] == MINUTE - 300
    assert funnel["watermark"]["delay_seconds"] == 9.5
    assert funnel["campaigns"] == [NASTY, "spring"]


def test_without_a_choice_the_api_adds_up_all_campaigns():
    assert orjson.loads(get(view(), "/api/v1/funnel?window=all").body)["stages"][1]["events"] == 25


@pytest.mark.parametrize(
    ("query", "status", "says"),
    [
        ("window=2h", 400, f"unknown window '2h': there are {', '.join(WINDOWS_AND_ALL)}"),
        ("windw=1h", 400, "unknown parameter 'windw': there are window, campaign and source"),
        ("window=1h&window=1d", 400, "window is given more than once"),
        ("campaign=autumn", 404, "there is no event of the campaign 'autumn' yet"),
    ],
)
def test_a_bad_question_is_told_what_is_wrong(query, status, says):
    answer = get(view(), f"/api/v1/funnel?{query}")
    assert (answer.status, orjson.loads(answer.body)) == (status, {"error": says})


def test_the_api_gives_no_numbers_before_the_view_has_caught_up():
    answer = get(view(None, "connecting", "connecting to the broker"), "/api/v1/funnel")
    told = {"state": "connecting", "error": "connecting to the broker"}
    assert (answer.status, orjson.loads(answer.body)) == (503, told)


def test_the_api_says_how_the_numbers_stand():
    def told(served):
        document = orjson.loads(get(served, "/api/v1/funnel").body)
        return document["state"], document["reason"]

    assert told(view()) == ("live", "")
    assert told(view(verdict="behind", reason="7 records wait")) == ("behind", "7 records wait")


def test_before_the_first_event_nothing_is_called_old():
    funnel = Funnel(UTC)
    funnel.apply(0, POSITION_KEY, b'{"offset":9,"watermark_ms":-1,"fold":"x"}')
    served = view(funnel.snapshot(NOW), delay_s=None)
    watermark = orjson.loads(get(served, "/api/v1/funnel").body)["watermark"]
    assert (watermark["timestamp_seconds"], watermark["delay_seconds"]) == (None, None)


def test_readiness_is_what_the_process_says_of_itself():
    request = ("GET", "/-/ready", {})
    assert ask(view(), request)[0].status == 200
    answer = ask(view(), request, not_ready=lambda: "recovering 2 partitions")[0]
    assert (answer.status, answer.body) == (503, b"recovering 2 partitions\n")


def test_a_view_that_died_is_not_healthy():
    assert get(view(None, "connecting"), "/-/healthy").status == 200
    dead = get(view(None, "failed", "stopped: no row", RuntimeError("no row")), "/-/healthy")
    assert (dead.status, dead.body) == (503, b"stopped: no row\n")


@pytest.mark.parametrize("path", ["/", "/metrics", "/api/v1/funnel", "/-/ready", "/-/healthy", "/page.js"])
def test_only_get_and_head_exist(path):
    head, *others = ask(
        view(), *((method, path, {}) for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS"))
    )
    assert (head.status, head.body) == (200, b"")
    assert {answer.status for answer in others} == {405}
    assert others[0].headers["Allow"] == "GET,HEAD"


@pytest.mark.parametrize("path", ["/", "/metrics", "/page.js", "/-/ready", "/-/healthy", "/nowhere"])
def test_who_asks_by_a_name_that_is_not_ours_is_told_the_setting_and_nothing_else(path):
    answer = get(view(), path, Host="evil.example:9464")
    assert answer.status == 421
    assert b"'evil.example:9464'" in answer.body
    assert b"CALLFUNNEL_HTTP_NAMES" in answer.body
    assert b"spring" not in answer.body


def test_the_api_tells_it_as_json():
    answer = get(view(), "/api/v1/funnel", Host="evil.example")
    assert (answer.status, orjson.loads(answer.body).keys()) == (421, {"error"})


def test_a_name_of_the_setting_is_answered():
    served = view()
    under_test = Pages.of(
        Settings(http_port=0, http_names="engine,.lan"),
        view=served,
        exposition=Exposition(served.standing, CollectorRegistry()),
        not_ready=lambda: None,
    )

    async def statuses(*hosts):
        async with TestClient(TestServer(under_test.app())) as client:
            return [(await client.get("/metrics", headers={"Host": host})).status for host in hosts]

    assert asyncio.run(statuses("engine:9464", "floor-1.lan", "evil.example")) == [200, 200, 421]


@pytest.mark.parametrize("path", ["/", "/metrics", "/nowhere", "/api/v1/funnel?window=x"])
def test_every_answer_tells_the_browser_to_trust_nothing(path):
    headers = get(view(), path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["Server"] == "callfunnel"


def test_the_page_is_served_whole_without_anything_from_elsewhere():
    page, script, style, icon = (get(view(), path) for path in ("/", "/page.js", "/page.css", "/icon.svg"))
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert script.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert style.headers["Content-Type"] == "text/css; charset=utf-8"
    assert icon.headers["Content-Type"].startswith("image/svg+xml")
    for file in (page, script, style):
        assert b"://" not in file.body.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"<style" not in page.body
    assert b"innerHTML" not in script.body


def test_a_taken_port_is_told_and_the_setting_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            SettingError, match=f"CALLFUNNEL_HTTP_PORT: another program listens on 127.0.0.1:{port}"
        ):
            pages(view(), port=port).start()


def test_the_pages_run_in_their_own_thread_and_free_the_port_when_stopped():
    under_test = pages(view())
    under_test.start()
    port = int(under_test.url.rsplit(":", 1)[1].strip("/"))
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 200 OK")
    under_test.stop()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))

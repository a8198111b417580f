import io
import socket
import threading
from datetime import UTC
from http.server import BaseHTTPRequestHandler, HTTPServer

import orjson
import pytest
from click.testing import CliRunner
from rich.console import Console

from callfunnel.agents.commands.top import command
from callfunnel.agents.view.api import funnel_document
from callfunnel.agents.view.snapshot import Funnel
from callfunnel.agents.view.terminal import funnel_table
from callfunnel.streams.rows import POSITION_KEY

NOW = 1_750_000_020
COLUMNS = {
    "events_dialed": 100, "events_reached": 12, "dm_hangups": 2, "leads_created": 1234, "leads_reached": 10,
    "leads_qualified": 6, "events_qualified": 6, "uncalled": 1,
}  # fmt: skip


def document(watermark_ms=NOW * 1000, **columns):
    funnel = Funnel(UTC)
    funnel.apply(0, POSITION_KEY, orjson.dumps({"offset": 1, "watermark_ms": watermark_ms, "fold": "x"}))
    for resolution, pane in (("1h", NOW // 3600 * 3600), ("all", 0)):
        key = [resolution, pane, "campaign+source", "[b]x[/b]", "y"]
        funnel.apply(0, orjson.dumps(key), orjson.dumps(COLUMNS | columns))
    return funnel_document(funnel.snapshot(NOW), now_s=NOW, delay_s=0.0, window="all")


def text(shown, color=None, width=120) -> str:
    console = Console(
        width=width,
        force_terminal=color is not None,
        color_system=color,
        record=True,
        file=io.StringIO(),
    )
    console.print(funnel_table(shown))
    return console.export_text(styles=color is not None)


def test_the_table_shows_stages_rates_and_their_volumes():
    lines = text(document()).splitlines()
    assert any(line.split()[0] == "created" and "1,234" in line for line in lines)
    assert any(
        line.split()[:2] == ["reach", "10.0%"] and "10 / 100" in line and "critical" in line for line in lines
    )
    assert any("qualification" in line and "60.0%" in line and "standard" in line for line in lines)
    assert any(line.startswith("close") and "0 / 6" in line and "too few" in line for line in lines)


def test_a_rate_of_what_nobody_observed_says_so():
    lines = text(document(events_qualified=0), width=80).splitlines()
    assert any("qualification" in line and "60.0%" in line and "not measured" in line for line in lines)
    assert "not measured: 6 of 6 qualified leads have no event of their own" in map(str.rstrip, lines)


def test_every_row_is_one_line_of_a_terminal_of_80_columns():
    shown = document()
    for rate in shown["ratios"]:
        rate |= {"numerator": 124_956, "denominator": 1_265_878, "band": "very good"}
    lines = text(shown, width=80).splitlines()
    assert lines == [line[:80] for line in text(shown).splitlines()]
    assert any(line.rstrip().endswith("≥ 15%, very good ≥ 30%") for line in lines)


def test_on_a_narrow_terminal_the_bars_give_way_and_not_the_numbers():
    lines = text(document(), width=44).splitlines()
    assert any(line.split()[0] == "qualified" and line.split()[-2:] == ["6", "6"] for line in lines)
    assert any(line.split()[0] == "created" and line.split()[-2:] == ["1,234", "0"] for line in lines)


def test_a_page_that_stands_still_says_so():
    told = {"state": "behind", "reason": "1,500 records are not counted yet"}
    assert "behind: 1,500 records are not counted yet" in text(document() | told)
    assert "live" not in text(document() | {"state": "live", "reason": ""})
    assert "replay" not in text(document() | {"state": "replay", "reason": ""})


def test_a_poisoned_partition_is_named():
    poison = "63% of the newest records of partition 3 are rejected"
    assert poison in text(document() | {"poisoned": {"3": 0.63}})
    assert "rejected" not in text(document() | {"poisoned": {}})


def test_what_is_archived_is_told_where_it_counts():
    archived = {"archived": {"before_timestamp_seconds": 1_715_385_600.0, "leads": 1_200, "uncalled": 7}}
    told = "archived: 1,200 leads without an event since 2024-05-11, 7 of them never called"
    assert told in text(document() | archived)
    assert "archived" not in text(document() | archived | {"window": "1h"})
    assert "archived" not in text(document())


def test_a_band_has_its_colour():
    assert "\x1b[1;31m10.0%" in text(document(), "standard")
    assert "\x1b[1;32m60.0%" in text(document(), "standard")


def test_a_rate_of_nothing_is_no_rate():
    shown = document()
    assert any("called in 5 min" in line and "–" in line for line in text(shown).splitlines())


def test_names_from_events_are_text_and_not_markup():
    shown = document() | {"campaign": "[b]x[/b]"}
    assert "campaign [b]x[/b]" in text(shown)


@pytest.fixture
def answering():
    """A page at `.url` that answers `.status` and `.body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(server.status)
            self.end_headers()
            self.wfile.write(server.body)
            server.paths.append(self.path)

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.status, server.body, server.paths = 200, orjson.dumps(document()), []
    server.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def top(*arguments):
    return CliRunner().invoke(command, [*arguments, "--once"])


def test_top_draws_what_the_page_answers(answering):
    result = top("--url", f"{answering.url}/", "--window", "today", "--campaign", "a b")
    assert result.exit_code == 0, result.output
    assert "reach" in result.output
    assert answering.paths == ["/api/v1/funnel?window=today&campaign=a+b"]


def test_top_says_where_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    result = top("--url", f"http://127.0.0.1:{port}")
    assert result.exit_code == 69
    assert f"No callfunnel page answers at http://127.0.0.1:{port}" in result.output
    assert "callfunnel worker" in result.output


@pytest.mark.parametrize(("status", "code"), [(503, 69), (404, 64)])
def test_top_passes_on_the_reason_of_the_page(answering, status, code):
    answering.status, answering.body = status, b'{"error":"catching up: 5 records are left to read"}'
    result = top("--url", answering.url)
    assert result.exit_code == code
    assert "catching up: 5 records are left to read" in result.output


def test_top_goes_on_while_there_are_no_numbers(answering, monkeypatch):
    def second(_):
        answering.body = b'{"state":"stale","error":"no broker has answered for 17 s"}'
        answering.status = 503
        if len(answering.paths) > 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", second)
    result = CliRunner().invoke(command, ["--url", answering.url])
    assert result.exit_code == 0
    assert "no broker has answered for 17 s" in result.output


def test_top_does_not_take_another_page_for_callfunnel(answering):
    answering.body = b"<html>hello</html>"
    result = top("--url", answering.url)
    assert result.exit_code == 69
    assert "No callfunnel page answers" in result.output

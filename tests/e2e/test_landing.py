"""The landing page in a real browser, at a desk and on a phone, by day and by night.

One page is served by a real worker that folds a real stream; the others by a stand-in for the view, which can
be put into each state that the page has a word for.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC
from itertools import islice

import orjson
import pytest
from e2e.browser import DESKTOP, PHONE, Browser, Page
from prometheus_client import CollectorRegistry

from callfunnel.agents.config import Settings
from callfunnel.agents.demo import generator
from callfunnel.agents.demo.broker import EmbeddedBroker, embedded_program
from callfunnel.agents.kafka import topics
from callfunnel.agents.view.exposition import Exposition
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.snapshot import Funnel, Snapshot, Standing
from callfunnel.streams.rows import POSITION_KEY, encode_base_key, encode_columns
from integration.workers import Workers, publish, record
from patience import Deadline

NASTY = '<img src="x" onerror="document.title=1">'
GRAFANA = "http://grafana.example:3000"
HOUR = 3600
HORIZON_MS = 1_715_385_600_000
NARROWEST = 320
LOOKS = [(DESKTOP, False), (DESKTOP, True), (PHONE, False), (PHONE, True)]

CONTRASTS = """
(() => {
  const parse = (text) => [...text.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const over = ([r, g, b, a], [x, y, z]) => [r * a + x * (1 - a), g * a + y * (1 - a), b * a + z * (1 - a)];
  const linear = (c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
  const ratio = (one, other) => {
    const [low, high] = [light(one), light(other)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  const chain = (node) => node.parentElement ? [...chain(node.parentElement), node] : [node];
  const ground = (node) => chain(node).map((one) => parse(getComputedStyle(one).backgroundColor))
    .reduce((below, colour) => over(colour, below), [255, 255, 255]);
  const opacity = (node) => chain(node).reduce((all, one) => all * getComputedStyle(one).opacity, 1);
  const judged = (node, what, colour, behind) => {
    const [r, g, b, a] = parse(colour);
    return [what, ratio(over([r, g, b, a * opacity(node)], behind), behind)];
  };
  const found = [];
  for (const node of document.body.querySelectorAll("*")) {
    if (node.closest("noscript, option") || !node.checkVisibility()) continue;
    const texts = [...node.childNodes].filter((one) => one.nodeType === Node.TEXT_NODE);
    const words = texts.map((one) => one.data).join("").trim();
    const style = getComputedStyle(node);
    if (words) found.push(judged(node, `text ${words.slice(0, 30)}`, style.color, ground(node)));
    if (node.matches(".bar rect, .zone.now")) {
      found.push(judged(node, `shape ${node.classList}`, style.fill, ground(node.closest("svg"))));
    }
  }
  return found;
})()
"""

STOP = """
(() => {
  const at = document.activeElement;
  const shown = at.matches("input") ? at.nextElementSibling : at;
  const style = getComputedStyle(shown);
  return {
    name: at === document.body ? "" : at.id || at.name || at.textContent.trim(),
    ring: style.outlineStyle === "none" ? 0 : parseFloat(style.outlineWidth),
    inView: (({ top, bottom }) => top >= 0 && bottom <= innerHeight)(shown.getBoundingClientRect()),
  };
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as running:
        yield running


class Served:
    """The pages over a stand-in for the view, at a wall clock that goes on."""

    def __init__(self) -> None:
        self.current: Snapshot | None = None
        self.verdict, self.reason = "connecting", "connecting to the broker"
        self.failure = None
        exposition = Exposition(self.standing, CollectorRegistry())
        self.pages = Pages(
            "127.0.0.1",
            0,
            view=self,
            exposition=exposition,
            not_ready=lambda: None,
            grafana_url=GRAFANA,
        )

    async def fresh(self) -> None:
        """Its numbers do not change by themselves."""

    def standing(self) -> Standing:
        return Standing("current" if self.current else "stale", self.current, self.verdict, self.reason)

    @property
    def now_s(self) -> int:
        return int(time.time())

    @property
    def delay_s(self) -> float | None:
        newest_ms = self.current.newest_ms if self.current else 0
        return max(0.0, time.time() - newest_ms / 1000) if newest_ms else None

    def show(
        self,
        rows: dict[tuple[str, str], dict[str, int]],
        newest_seconds_ago: float = 0.0,
        archived: dict[str, int] | None = None,
    ) -> None:
        now_s = self.now_s
        self.oldest_s = now_s // 60 * 60 - 20 * 60
        funnel = Funnel(UTC)
        watermark_ms = int((now_s - newest_seconds_ago) * 1000) if rows else -1
        position = {"offset": 9, "watermark_ms": watermark_ms, "fold": "x", "horizon_ms": HORIZON_MS}
        if archived:
            funnel.apply(
                0, encode_base_key("x", "campaign+source", ("spring", "web")), encode_columns(archived)
            )
        funnel.apply(0, POSITION_KEY, orjson.dumps(position))
        for (campaign, source), columns in rows.items():
            for resolution, pane in (
                ("1m", self.oldest_s),
                ("1h", now_s // HOUR * HOUR),
                ("all", 0),
            ):
                key = [resolution, pane, "campaign+source", campaign, source]
                funnel.apply(0, orjson.dumps(key), orjson.dumps(columns))
        self.current = funnel.snapshot(now_s)
        self.verdict, self.reason = ("live", "") if rows else ("empty", "no event has been counted yet")


FILLED = {
    ("spring", "web"): {
        "events_created": 10, "events_dialed": 20, "events_reached": 5, "dm_hangups": 2, "leads_created": 12,
        "leads_dialed": 9, "leads_connected": 6, "leads_reached": 3, "leads_qualified": 2, "leads_won": 1,
        "awaited": 10, "attempt_60": 4, "attempt_600": 1, "attempt_ms": 500_000, "uncalled": 3, "implied": 2,
    },
    (NASTY, "list"): {"events_dialed": 20, "leads_dialed": 5, "leads_created": 5, "implied": 5},
}  # fmt: skip


@pytest.fixture(scope="module")
def pages() -> Iterator[Served]:
    served = Served()
    served.pages.start()
    yield served
    served.pages.stop()


@pytest.fixture
def filled(pages: Served) -> Served:
    pages.show(FILLED)
    return pages


def live(page: Page) -> Page:
    page.wait("document.getElementById('state').dataset.state === 'live'")
    return page


def text(page: Page, selector: str) -> str:
    """What can be read there; nothing where it is hidden."""
    one = f"document.querySelector({selector!r})"
    return page.ask(f"{one}.checkVisibility() ? {one}.innerText.replace(/\\s+/g, ' ').trim() : ''")


def cells(page: Page) -> dict[str, list[str]]:
    rows = page.ask(
        "[...document.querySelectorAll('#funnel tbody tr')]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    return {stage: [leads, kept, events] for stage, _, leads, kept, events in rows}


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_everything_is_there_and_nothing_is_wider_than_the_screen(browser, filled, width, dark):
    with browser.open(filled.pages.url, width=width, dark=dark) as page:
        live(page)
        assert cells(page)["created"][0] == "17"
        wider = page.ask(
            "[...document.querySelectorAll('*')]"
            ".filter((one) => one.getBoundingClientRect().right > innerWidth + 0.5)"
            ".map((one) => one.outerHTML.slice(0, 80))"
        )
        assert wider == []
        assert page.ask("document.documentElement.scrollWidth") == width
        assert page.complaints == []


def test_rates_are_judged_and_a_red_one_says_what_to_do(browser, filled):
    opened_s = int(time.time())
    with browser.open(f"{filled.pages.url}?campaign=spring") as page:
        live(page)
        assert cells(page)["dialed"] == ["9", "75%", "20"]
        assert text(page, "#reach .value") == "15.0% 3 of 20"
        assert text(page, "#reach .standard").startswith("standard ·")
        assert text(page, "#reach .advice") == ""
        assert text(page, "#response .value") == "40.0% 4 of 10"
        assert text(page, "#response .standard") == "critical · standard from 90%"
        assert "Put people on new leads now" in text(page, "#response .advice")
        assert text(page, "#close .value") == "50.0% 1 of 2"
        assert text(page, "#close .standard") == "too few: judged from 10 · standard from 50%"
        assert text(page, "#close .advice") == ""
        assert text(page, "#uncalled .value") == "3"
        minutes = {(at - filled.oldest_s + 30) // 60 for at in (opened_s, int(time.time()))}
        told = text(page, "#oldest")
        assert [n for n in minutes if told.startswith(f"The oldest has waited for {n} min, since ")]
        assert "2 arrivals have no event of their own" in text(page, "#implied")


def test_all_time_says_what_of_it_is_archived(browser, pages):
    pages.show(FILLED, archived={"leads_created": 4_000, "leads_dialed": 3_993, "uncalled": 7})
    with browser.open(f"{pages.pages.url}?window=all&campaign=spring") as page:
        live(page)
        assert cells(page)["created"][0] == "4,012"
        assert text(page, "#uncalled .value") == "3"
        told = text(page, "#archived")
        assert told.startswith("4,000 leads without an event since May 11, 2024 are archived.")
        assert told.endswith("7 of them were never called, and are not among the uncalled leads.")
        page.ask("document.querySelector('input[value=\\'1h\\']').click()")
        page.wait("document.getElementById('archived').hidden")


def test_a_rate_of_what_nobody_observed_is_shown_without_a_band(browser, pages):
    never_sent = {"leads_qualified": 40, "leads_won": 40, "events_won": 40}
    pages.show({("spring", "web"): FILLED["spring", "web"] | never_sent})
    with browser.open(pages.pages.url) as page:
        live(page)
        assert text(page, "#close .value") == "100.0% 40 of 40"
        why = "not measured: 40 of 40 qualified leads have no event of their own"
        assert text(page, "#close .standard") == f"{why} · standard from 50%"
        assert page.ask("'band' in document.getElementById('close').dataset") is False


@pytest.mark.parametrize(("width", "dark"), LOOKS)
@pytest.mark.parametrize("verdict", ["live", "behind"])
def test_every_text_can_be_read_and_every_bar_be_seen(browser, filled, width, dark, verdict):
    filled.verdict = verdict
    with browser.open(filled.pages.url, width=width, dark=dark) as page:
        page.wait("document.querySelector('.zone.now')")
        contrasts = page.ask(CONTRASTS)
        assert len(contrasts) > 60
        poor = [(what, ratio) for what, ratio in contrasts if ratio < (4.5 if what.startswith("text") else 3)]
        assert poor == []


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_an_empty_funnel_can_be_read_as_well(browser, pages, width, dark):
    pages.show({})
    with browser.open(pages.pages.url, width=width, dark=dark) as page:
        page.wait("document.getElementById('state').innerText === 'no events yet'")
        assert text(page, "#reach .standard").startswith("nothing to measure yet")
        poor = [(what, ratio) for what, ratio in page.ask(CONTRASTS) if ratio < 4.5 and "text" in what]
        assert poor == []


def test_the_longest_name_fits_the_narrowest_phone(browser, pages):
    pages.show({("c" * 64, "s" * 64): FILLED["spring", "web"]})
    with browser.open(pages.pages.url, width=NARROWEST) as page:
        live(page)
        assert page.ask("document.documentElement.scrollWidth") == NARROWEST


@pytest.mark.parametrize("dark", [False, True])
def test_numbers_that_are_not_of_now_can_still_be_read(browser, filled, dark):
    with browser.open(filled.pages.url, dark=dark) as page:
        live(page)
        filled.current, filled.verdict, filled.reason = None, "stale", "no broker has answered for 17 s"
        page.wait("document.querySelector('main.stale')")
        assert text(page, "#state") == "standing still"
        told = text(page, "#trouble")
        assert told.startswith("No numbers: no broker has answered for 17 s. What is shown is of ")
        poor = [
            (what, ratio) for what, ratio in page.ask(CONTRASTS) if ratio < (4.5 if "text" in what else 3)
        ]
        assert poor == []


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
def test_tab_reaches_every_control_and_link_in_the_order_they_are_seen(browser, filled, width):
    with browser.open(filled.pages.url, width=width) as page:
        live(page)
        page.press("Tab")
        stops = []
        while (stop := page.ask(STOP))["name"] and len(stops) < 40:
            stops.append(stop)
            page.press("Tab")
        assert [stop["name"] for stop in stops] == [
            "window", "campaign", "source",
            "Funnel overview", "Campaign", "Agents and teams", "Speed to lead", "Plan", "Engine",
            "Prometheus metrics", "json", "Ready?", "Healthy?",
        ]  # fmt: skip
        assert min(stop["ring"] for stop in stops) >= 2
        assert all(stop["inView"] for stop in stops)


def test_the_arrows_change_the_window_and_the_address_can_be_shared(browser, filled):
    with browser.open(filled.pages.url) as page:
        live(page)
        page.press("Tab")
        page.press("ArrowRight")
        page.wait("location.search === '?window=1d'")
        page.ask(
            f"(() => {{ const one = document.getElementById('campaign'); one.value = {NASTY!r};"
            "one.dispatchEvent(new Event('change', { bubbles: true })); })()"
        )
        page.wait("document.querySelector('#reach .parts').textContent === ' 0 of 20'")
        address = page.ask("location.href")
        assert page.ask("document.querySelectorAll('main img').length") == 0
        assert page.ask("document.title") == "callfunnel"
    with browser.open(address) as page:
        live(page)
        assert page.ask("document.querySelector('input:checked').value") == "1d"
        assert page.ask("document.getElementById('campaign').value") == NASTY
        assert text(page, "#reach .value") == "0.0% 0 of 20"


def test_grafana_is_linked_with_the_campaign_that_is_looked_at(browser, filled):
    with browser.open(f"{filled.pages.url}?campaign=spring") as page:
        live(page)
        links = page.ask("[...document.querySelectorAll('#dashboards a')].map((one) => one.href)")
        assert links == [
            f"{GRAFANA}/d/callfunnel-{name}?var-campaign=spring"
            for name in ("overview", "campaign", "agents", "speed", "plan", "engine")
        ]


def test_before_and_without_scripts_the_page_says_what_it_is(browser, filled):
    with browser.open(filled.pages.url, script=False) as page:
        assert "switched off" in text(page, "noscript")
        assert cells(page)["won"] == ["–", "–", "–"]
        assert page.complaints == []


def test_each_state_has_a_word_and_a_remedy(browser, pages):
    pages.current, pages.verdict = None, "catching_up"
    pages.reason = "catching up: 7 records of the changelog are left to read"
    with browser.open(pages.pages.url) as page:
        page.wait("document.getElementById('trouble').innerText.includes('7 records of the changelog')")
        pages.show({})
        page.wait("document.getElementById('state').innerText === 'no events yet'")
        assert text(page, "#trouble") == "No event has been counted yet."
        assert text(page, "#oldest") == "No lead has come in yet."
        pages.show(FILLED)
        live(page)
        assert text(page, "#trouble") == ""
        pages.verdict, pages.reason = "behind", "1,500 records of call-events are not counted yet"
        page.wait("document.getElementById('state').innerText === 'behind'")
        assert text(page, "#trouble") == "1,500 records of call-events are not counted yet."
        assert text(page, "#freshness").startswith("· as of ")
        assert text(page, "#reach .parts") == "3 of 40"
        pages.show(FILLED, newest_seconds_ago=420)
        pages.verdict, pages.reason = "quiet", "nobody calls"
        page.wait("document.getElementById('state').innerText === 'no new events'")
        assert text(page, "#trouble") == "No event for 7 min: nobody calls."
        pages.verdict, pages.reason = "replay", ""
        page.wait("document.getElementById('state').innerText === 'replay'")
        assert text(page, "#trouble") == ""


def test_a_poisoned_partition_is_named_beside_the_numbers(browser, filled):
    with browser.open(filled.pages.url) as page:
        live(page)
        assert text(page, "#poisoned") == ""
        filled.current = replace(filled.current, poisoned={3: 0.63, 5: 1.0})
        page.wait("document.getElementById('poisoned').checkVisibility()")
        assert "63% of the newest records of partition 3, 100% of the" in text(page, "#poisoned")
        assert page.ask("document.getElementById('state').dataset.state") == "live"


def test_a_process_that_is_gone_is_noticed_and_its_last_numbers_are_called_so(browser):
    served = Served()
    served.show(FILLED)
    served.pages.start()
    with browser.open(served.pages.url) as page:
        live(page)
        served.pages.stop()
        page.wait("document.getElementById('state').innerText === 'no answer'")
        assert "These are the last numbers it gave" in text(page, "#trouble")
        assert cells(page)["created"][0] == "17"


def dials(page: Page) -> int:
    return int(cells(page)["dialed"][-1].replace(",", ""))


def test_new_events_are_seen_without_a_reload(browser, tmp_path):
    if embedded_program() is None:
        pytest.skip("the embedded broker is not installed (noida-db)")
    now_ms = int(time.time() * 1000)
    told = islice(generator.live(7, generator.FloorSettings(seats=20), now_ms - 600_000), 1500)
    records = [record(event, at_ms) for at_ms, event in told]
    with EmbeddedBroker() as broker:
        settings = Settings.from_environ(
            {},
            broker=broker.address,
            profile="development",
            partitions=4,
            clock="event",
            replay_until="2100-12-31",
            wait_seconds=10.0,
        )
        topics.create(settings)
        publish(settings, records[:1000])
        with Workers(settings, tmp_path) as crew:
            worker = crew.start()
            worker.wait_until(lambda: worker.get("/")[0] == 200, 30, "serves no page")
            with browser.open(f"{worker.url}/?window=all") as page:
                page.ask("window.isTheSamePage = true")
                worker.wait_until_ready()
                live(page)
                before = dials(page)
                publish(settings, records[1000:])
                deadline = Deadline(30)
                while dials(page) == before:
                    assert not deadline.is_over
                    time.sleep(0.1)
                assert before > 100
                assert dials(page) > before
                assert page.ask("window.isTheSamePage") is True
                assert [one for one in page.complaints if "503" not in one] == []

"""What the alerts say of a day of the generator's floor, folded and exposed by the product.

The floor is as healthy as floors are: four in ten of its new leads are called after three minutes, three
after fifty, the others next morning or never. What needs promtool is skipped where it is missing.
"""

import json
import os
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import orjson
import pytest
from prometheus_client import CollectorRegistry

import patience
from callfunnel.agents.choice import tables_for
from callfunnel.agents.config import Settings
from callfunnel.agents.demo import generator
from callfunnel.agents.engine.worker import partitions_of
from callfunnel.agents.view.exposition import Exposition
from callfunnel.agents.view.snapshot import Funnel, Standing
from callfunnel.streams.rows import POSITION_KEY
from contract.calling_hours import with_usual_hours

PROMETHEUS = Path(__file__).parents[2] / "deploy/prometheus"
DAY_S = 1_735_776_000
"""A Thursday, as time 0 of promtool is."""
STARTS, OPENS, CLOSES = 5, 9, 20
STEP_S = 300
STEPS = (CLOSES - STARTS) * 3600 // STEP_S
NEEDED = ("callfunnel_leads_uncalled", "callfunnel_window_leads_due")

Series = dict[str, list[str]]


def series(seats: int, new_leads_wait_from_s: float = float("inf")) -> Series:
    """Each series with a value every five minutes; from a moment on nobody calls a new lead any more."""
    settings = Settings.from_environ({}, broker="none:1", profile="development", timezone="UTC")
    partition = partitions_of(settings, 1, tables_for("auto"))(0)
    funnel = Funnel(UTC)
    found: Series = defaultdict(lambda: ["_"] * STEPS)
    for step, events in batches(seats, new_leads_wait_from_s):
        values = [orjson.dumps(event) for _, event in events]
        keys = [str(event["lead_id"]).encode() for _, event in events]
        times = [at_ms for at_ms, _ in events]
        effects = partition.apply(values, keys, times, (partition.offset or 0) + len(events))
        assert not effects.rejected
        for key, value in sorted(effects.funnel, key=lambda change: change[0] == POSITION_KEY):
            funnel.apply(0, key, value)
        snapshot = funnel.snapshot(DAY_S + STARTS * 3600 + (step + 1) * STEP_S)
        for family in Exposition(
            lambda now=snapshot: Standing("current", now), CollectorRegistry()
        ).families():
            if family.metric.name not in NEEDED:
                continue
            for row, numbers in family.rows.items():
                for sample, number in zip(family.layout, numbers, strict=True):
                    labels = {**dict(zip(family.labels, row, strict=True)), **dict(sample.labels)}
                    text = "".join(f', {name}="{value}"' for name, value in labels.items())
                    name = f'{family.metric.name}{{job="callfunnel", instance="a"{text}}}'
                    found[name][step] = f"{number:g}"
    return found


def batches(seats: int, wait_from_s: float) -> Iterator[tuple[int, list[tuple[int, dict[str, object]]]]]:
    start_ms = (DAY_S + STARTS * 3600) * 1000
    stream = generator.live(7, generator.FloorSettings(seats=seats), start_ms, generator.TYPICAL_FAULTS)
    called: set[object] = set()
    batch: list[tuple[int, dict[str, object]]] = []
    step = 0
    for at_ms, event in stream:
        while at_ms >= start_ms + (step + 1) * STEP_S * 1000:
            yield step, batch
            step, batch = step + 1, []
            if step == STEPS:
                return
        waits = event["source"] != "list" and event["lead_id"] not in called and at_ms / 1000 >= wait_from_s
        if event["type"] == "lead_created" or not waits:
            batch.append((at_ms, event))
            called |= {event["lead_id"]} if event["type"] != "lead_created" else set()


def firing(alert: str, shown: Series, folder: Path) -> list[int]:
    """At how many moments the alert fires, hour by calling hour, five minutes apart, campaigns added up."""
    rules = shutil.copytree(PROMETHEUS / "rules", folder / "rules")
    hours = rules / "calling-hours.yml"
    hours.write_text(with_usual_hours(hours.read_text("utf-8")))
    view = 'job="callfunnel", instance="a"'
    begin = ["_"] * (STARTS * 3600 // STEP_S + 1)  # promtool's time 0 is midnight
    every = {name: " ".join(begin + values) for name, values in shown.items()}
    every[f'callfunnel_view_state{{{view}, state="current"}}'] = f"1+0x{len(begin) + STEPS}"
    every[f"callfunnel_view_snapshot_timestamp_seconds{{{view}}}"] = f"0+{STEP_S}x{len(begin) + STEPS}"
    told = f'count_over_time(ALERTS{{alertname="{alert}", alertstate="firing"}}[59m])'
    test = {
        "rule_files": [f"{rules}/*.yml"],
        "evaluation_interval": f"{STEP_S}s",
        "group_eval_order": [
            f"callfunnel-{group}"
            for group in ("jobs", "calling-hours", "engine", "funnel", "response-sla", "business")
        ],
        "tests": [
            {
                "interval": f"{STEP_S}s",
                "input_series": [{"series": name, "values": values} for name, values in every.items()],
                "promql_expr_test": [
                    {
                        "expr": f"sum({told}) or vector(0)",
                        "eval_time": f"{hour}h",
                        "exp_samples": [{"labels": "{}", "value": -1}],
                    }
                    for hour in range(OPENS + 1, CLOSES + 1)
                ],
            }
        ],
    }
    file = folder / "floor.json"
    file.write_text(json.dumps(test))  # JSON is YAML
    done = patience.run(["promtool", "test", "rules", str(file)], seconds=100)
    found = re.findall(r"got: \{\} (\S+)", done.stdout + done.stderr)
    assert len(found) == CLOSES - OPENS, done.stdout + done.stderr
    return [int(float(number)) for number in found]


@pytest.fixture(autouse=True)
def promtool() -> None:
    if shutil.which("promtool") is None:
        lacking = pytest.fail if os.environ.get("FUNNEL_REQUIRE_PROMTOOL") == "1" else pytest.skip
        lacking("promtool is not installed (Debian: apt-get install prometheus)")


def test_uncalled_leads_of_a_healthy_floor_are_no_alarm(tmp_path):
    """An alert that one waiting lead made red was red at 98 % of these moments."""
    campaigns = len(generator.FloorSettings().campaigns)
    moments = campaigns * (CLOSES - OPENS) * 3600 // STEP_S
    assert sum(firing("OldestUncalledLead", series(20), tmp_path)) / moments <= 0.02


def test_new_leads_that_nobody_calls_any_more_are_told_within_an_hour(tmp_path):
    told = firing("OldestUncalledLead", series(10, DAY_S + 13 * 3600), tmp_path)
    assert sum(told[: 13 - OPENS]) == 0
    assert all(told[13 - OPENS :])

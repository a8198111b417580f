"""A real Prometheus for a test: it scrapes what it is told to, and may remember days it has not seen."""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import pytest
import yaml

from callfunnel.agents.demo.broker import end_process, free_port, start_process
from patience import Deadline

WANTED = os.environ.get("FUNNEL_TEST_PROMETHEUS", "if installed")
"""`required`: a machine without Prometheus fails. Otherwise what needs it is skipped there."""

_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")


def find() -> tuple[str, str]:
    """The programs prometheus and promtool."""
    programs = [shutil.which(name) for name in ("prometheus", "promtool")]
    if programs[0] is None or programs[1] is None:
        leave_out("Prometheus is not installed (Debian: apt-get install prometheus)")
    return programs[0], programs[1]


def leave_out(why: str) -> NoReturn:
    """Skip the test, or fail it where Prometheus is required."""
    if WANTED == "required":
        pytest.fail(f"{why}; to leave this check out, set FUNNEL_TEST_PROMETHEUS=skip")
    pytest.skip(why)


def to_wednesday_afternoon(rules: Path) -> None:
    """Change the rules in a folder so that it is Wednesday, 14:00, on the floor: calling hours."""
    now = datetime.now(UTC)
    of_week = now.weekday() * 86_400 + now.hour * 3600 + now.minute * 60 + now.second
    file = rules / "calling-hours.yml"
    text = yaml.safe_load(file.read_text("utf-8"))
    (offset,) = (
        rule
        for group in text["groups"]
        for rule in group["rules"]
        if rule.get("record") == "callfunnel:utc_offset_seconds"
    )
    offset["expr"] = f"vector({2 * 86_400 + 14 * 3600 - of_week})"
    file.write_text(json.dumps(text))  # JSON is YAML


class Refused(Exception):
    """Prometheus did not take the query."""


class Prometheus:
    """Scrapes `addresses` (host:port) as one job and evaluates `rules`, both every second, in its context."""

    def __init__(self, folder: Path, job: str, addresses: Sequence[str], rules: Path | None = None) -> None:
        self._program, self._promtool = find()
        self._folder = folder
        self._job = job
        self._addresses = addresses
        self._rules = [f"{rules}/*.yml"] if rules else []
        self._data = folder / "data"
        self._data.mkdir(parents=True)
        self.url = f"http://127.0.0.1:{free_port()}"

    def remember(self, page: str, instance: str, at_s: float, seconds: int = 300, step: int = 15) -> None:
        """Hold the samples of an OpenMetrics page as if they had been scraped from `at_s` on."""
        lines = []
        for line in page.splitlines():
            sample = _SAMPLE.match(line)
            if sample is None:
                lines.append(line)
                continue
            name, labels, value = sample.groups()
            target = f'job="{self._job}",instance="{instance}"'
            text = f"{name}{{{target}{',' + labels if labels else ''}}} {value}"
            lines += [f"{text} {at_s + after:.3f}" for after in range(0, seconds, step)]
        file = self._folder / f"past-{at_s:.0f}.txt"
        file.write_text("\n".join(lines) + "\n")
        subprocess.run(
            [self._promtool, "tsdb", "create-blocks-from", "openmetrics", str(file), str(self._data)],
            check=True,
            capture_output=True,
        )

    def __enter__(self) -> Self:
        jobs = [{"job_name": self._job, "static_configs": [{"targets": list(self._addresses)}]}]
        config = {
            "global": dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), "1s"),
            "rule_files": self._rules,
            "scrape_configs": jobs,
        }
        file = self._folder / "prometheus.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        self._process = start_process(
            [
                self._program,
                f"--config.file={file}",
                f"--storage.tsdb.path={self._data}",
                "--storage.tsdb.retention.time=30d",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            self._folder / "prometheus.log",
        )
        deadline = Deadline(30)
        while not self._is_ready():
            if self._process.poll() is not None or deadline.is_over:
                end_process(self._process, patience_seconds=5)
                raise AssertionError((self._folder / "prometheus.log").read_text())
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        end_process(self._process, patience_seconds=10)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def ask(self, path: str, **parameters: Any) -> Any:
        """The data of an answer of the API. Raises Refused, also when there is a warning with the answer."""
        query = urllib.parse.urlencode(parameters, doseq=True)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode()) from None
        if answer.get("warnings") or answer.get("infos"):
            raise Refused(str(answer.get("warnings") or answer.get("infos")))
        return answer["data"]

    def now(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an instant query."""
        result = self.ask("query", query=expr)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def over(
        self, expr: str, start_s: float, end_s: float, step_s: float
    ) -> list[tuple[dict[str, str], list[float]]]:
        """Labels and values of each series of a range query."""
        result = self.ask("query_range", query=expr, start=start_s, end=end_s, step=step_s)["result"]
        return [(series["metric"], [float(value) for _, value in series["values"]]) for series in result]

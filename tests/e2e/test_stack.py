"""`make stack` as somebody at a terminal has it: it says where everything is, and Ctrl-C ends it all."""

import io
import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
from e2e.prometheus import leave_out
from e2e.terminal import Terminal
from rich.console import Console

import patience
from callfunnel.agents.demo.broker import embedded_program
from callfunnel.agents.errors import Failure
from deploy import stack
from deploy.kafka import kraft
from integration.workers import ROOT
from patience import Deadline

START_SECONDS = 120


@pytest.fixture(params=["embedded", "kafka"])
def kind(request: pytest.FixtureRequest) -> str:
    try:
        stack.Programs.find()
    except stack.Missing as lacking:
        leave_out(lacking.message.splitlines()[0])
    if request.param == "kafka" and kraft.lacking():
        leave_out(kraft.lacking())
    if request.param == "embedded" and embedded_program() is None:
        leave_out("the embedded broker is not installed (noida-db)")
    return request.param


def test_the_stack_says_where_everything_is_and_ctrl_c_ends_it_all(kind):
    with Terminal(sys.executable, "deploy/stack.py", "--broker", kind, "--seats", "30") as terminal:
        terminal.wait_for("Ctrl-C ends everything", START_SECONDS)
        said = dict(re.findall(r"(the funnel|Prometheus|Alertmanager) +(http://\S+?)/", terminal.read()))
        up = f"{said['Prometheus']}/api/v1/query?query=callfunnel_events_total>0"
        deadline = Deadline(60)
        while not get(up)["data"]["result"]:
            assert not deadline.is_over, terminal.read()
            time.sleep(0.5)
        rules = get(f"{said['Prometheus']}/api/v1/rules")["data"]["groups"]
        assert {rule["health"] for group in rules for rule in group["rules"]} <= {"ok", "unknown"}
        assert len(get(f"{said['Prometheus']}/api/v1/alertmanagers")["data"]["activeAlertmanagers"]) == 1
        assert (
            get(f"{said['Alertmanager']}/api/v2/status")["config"]["original"].count("receiver: floor") == 1
        )
        assert get(f"{said['the funnel']}/api/v1/funnel")["stages"][1]["events"] > 0
        checked = terminal.check()
        assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
        terminal.end()


def get(url: str) -> dict:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def test_an_alert_is_shown_with_the_campaigns_own_name():
    alert = {
        "status": "firing",
        "labels": {"alertname": "ReachRateCritical"},
        "annotations": {"summary": "[red]spring[/]: 5% of dials"},
    }
    shown = io.StringIO()
    Console(file=shown, width=200).print(stack.line("floor", alert))
    assert shown.getvalue() == "firing   to floor: ReachRateCritical: [red]spring[/]: 5% of dials\n"


@pytest.mark.parametrize("body", [b"{}", b"[]", b"", b'{"alerts": [{}]}', b'{"alerts": [7]}'])
def test_what_is_no_message_of_alertmanager_is_refused(body):
    told = []
    with stack.Receiver(0, lambda name, alert: told.append((name, alert["status"]))) as receiver:
        address = f"http://{receiver.address}/floor"
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(address, body, timeout=5)
        urllib.request.urlopen(address, b'{"alerts": [{"status": "firing"}]}', timeout=5).close()
    assert told == [("floor", "firing")]


def test_a_program_that_was_killed_is_said_to_be_killed(tmp_path):
    try:
        monitoring = stack.Monitoring(
            tmp_path, engines=[], receiver="127.0.0.1:1", prometheus_port=2, alertmanager_port=3
        )
    except stack.Missing as lacking:
        leave_out(lacking.message.splitlines()[0])
    monitoring.processes["Prometheus"] = process = subprocess.Popen(["sleep", "60"])
    monitoring.look()
    process.kill()
    process.wait(10)
    with pytest.raises(Failure, match=r"^Prometheus was ended by SIGKILL\.$"):
        monitoring.look()


def test_who_lacks_prometheus_is_told_what_to_install(tmp_path):
    environ = {"PATH": str(tmp_path), "PYTHONPATH": str(ROOT)}
    ended = patience.run([sys.executable, "deploy/stack.py"], seconds=30, cwd=ROOT, env=environ)
    assert ended.returncode == 69
    assert ended.stderr.startswith("Error: Prometheus and Alertmanager cannot be found.")
    assert "apt-get install prometheus prometheus-alertmanager" in ended.stderr

"""`make demo` as somebody at a terminal has it: addresses first, then the replay, and Ctrl-C ends it all."""

import re
import sys
import urllib.request

import pytest
from e2e.terminal import Terminal

from callfunnel.agents.demo.broker import embedded_program


@pytest.mark.skipif(embedded_program() is None, reason="the embedded broker is not installed (noida-db)")
def test_the_demo_says_where_everything_is_before_it_replays_and_ctrl_c_ends_it_all():
    with Terminal(sys.executable, "-m", "callfunnel.agents.cli", "demo", "--http-port", "0") as terminal:
        terminal.wait_for("publishing", 120)
        told, _, _ = terminal.read().partition("publishing")
        assert "Ctrl-C ends everything." in told
        said = dict(re.findall(r"(the funnel|Prometheus|its workers) +(http://\S+)", told))
        with urllib.request.urlopen(said["the funnel"], timeout=10) as answer:
            assert b"callfunnel" in answer.read()
        checked = terminal.check()
        assert (checked.returncode, checked.stderr) == (0, ""), checked.stdout
        terminal.end()

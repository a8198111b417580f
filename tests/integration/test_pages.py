"""The pages of a process with few descriptors, while clients hold on to it: a scrape gets through.

The process is a view without a broker, which serves its pages while it waits for one.
"""

import resource
import socket
import sys
import time
import urllib.error
import urllib.request
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from callfunnel.agents.demo.broker import end_process, free_port, start_process
from patience import Deadline

ROOT = Path(__file__).parents[2]
FEW = 256
"""Descriptors of the process."""
MANY = 2_000
"""Connections, opened one after the other."""


@pytest.fixture(autouse=True)
def descriptors():
    """The test itself holds more connections than a process may by default."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY + 500
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"a process may have {hard} descriptors here, and {wanted} are needed (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def start(tmp_path):
    """Starts the process with these settings; its port. In the end it must still run, and have said nothing
    of a failure."""
    log = tmp_path / "view.log"
    with ExitStack() as stack:

        def start(**settings):
            port = free_port()
            command = [
                "/bin/sh",
                "-c",
                f'ulimit -n {FEW}; exec "$@"',
                "sh",
                sys.executable,
                "-m",
                "callfunnel.agents.cli",
            ]
            command += ["view", "--broker", "127.0.0.1:1", "--http-port", str(port), "--wait", "600"]
            environ = {f"CALLFUNNEL_{name.upper()}": str(value) for name, value in settings.items()}
            view = start_process(command, log, {"PYTHONPATH": str(ROOT)} | environ)
            stack.callback(end_process, view, 10)
            deadline = Deadline(60)
            while ask(port) is None:
                assert view.poll() is None, log.read_text()
                assert not deadline.is_over, log.read_text()
                time.sleep(0.1)
            start.process = view
            start.log = log
            return port

        yield start
        assert start.process.poll() is None, log.read_text()
        assert "Traceback" not in log.read_text()


def ask(port, path="/-/healthy"):
    """The status of an answer, or None when there is none within 20 s."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=20) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.mark.parametrize("most", [100, 2_000], ids=["the default", "more than there are descriptors"])
@pytest.mark.parametrize(
    "sends",
    [
        b"",
        b"GET /metrics HTTP/1.1\r\nHost: loc",
        b"GET /page.js HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3,
    ],
    ids=["idle", "begins a request", "reads no answer"],
)
def test_2000_connections_keep_nobody_out(start, sends, most):
    port = start(http_connections=most)
    with ExitStack() as stack:
        for _ in range(MANY):
            client = stack.enter_context(socket.socket())
            client.settimeout(5)
            with suppress(OSError):  # nobody takes it, or it is closed for another one
                client.connect(("127.0.0.1", port))
                client.sendall(sends)
        for path, status in (("/-/healthy", 200), ("/metrics", 200), ("/-/ready", 503), ("/", 200)):
            assert ask(port, path) == status
    assert ask(port) == 200

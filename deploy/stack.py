"""What compose.yaml runs, without Docker: Kafka, a worker, Prometheus and Alertmanager as processes here.

    python deploy/stack.py

A live floor publishes, alerts are told in the terminal, and Ctrl-C ends everything. The law: configuration,
rules and runbooks are the files of this folder; only addresses are put in where a usual port is taken.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple, Self

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # for a run as a script, from a checkout that is not installed

import click  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.markup import escape  # noqa: E402

from callfunnel.agents import exit_codes  # noqa: E402
from callfunnel.agents.config import Settings, export  # noqa: E402
from callfunnel.agents.demo.broker import (  # noqa: E402
    HOST,
    Broker,
    EmbeddedBroker,
    end_process,
    free_port,
    is_free,
    start_process,
)
from callfunnel.agents.demo.run import go_live, program, started_workers  # noqa: E402
from callfunnel.agents.errors import Failure  # noqa: E402
from callfunnel.agents.kafka import topics  # noqa: E402
from callfunnel.agents.scratch import Scratch  # noqa: E402
from deploy.kafka import kraft  # noqa: E402

START_SECONDS = 60.0
STOP_SECONDS = 10.0
USUAL = {"Kafka": 9092, "engine": 9464, "Prometheus": 9090, "Alertmanager": 9093, "receiver": 9095}

Alert = dict[str, Any]


class Missing(Failure):
    """A program that has to be installed first."""

    exit_code = exit_codes.UNAVAILABLE


class Programs(NamedTuple):
    """Where Prometheus and Alertmanager are."""

    prometheus: str
    alertmanager: str

    @classmethod
    def find(cls) -> Self:
        """Raises Missing."""
        prometheus = shutil.which("prometheus")
        alertmanager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        if prometheus and alertmanager:
            return cls(prometheus, alertmanager)
        lacking = [
            *(["Prometheus"] if not prometheus else []),
            *(["Alertmanager"] if not alertmanager else []),
        ]
        raise Missing(
            f"{' and '.join(lacking)} cannot be found. On Debian: "
            "`apt-get install prometheus prometheus-alertmanager`; elsewhere put `prometheus` and "
            "`alertmanager` into the PATH."
        )


class Receiver:
    """Takes what Alertmanager sends to its webhooks: each alert of each message, with the receiver's name."""

    def __init__(self, port: int, told: Callable[[str, Alert], None]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                try:
                    message = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                    for alert in message["alerts"]:
                        told(self.path.strip("/"), alert)
                except (KeyError, TypeError, ValueError):
                    self.send_error(400, "This is no message of Alertmanager")
                    return
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """It is told already."""

        self._server = ThreadingHTTPServer((HOST, port), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self.address = f"{HOST}:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class Monitoring:
    """Prometheus and Alertmanager with the files of this folder, copied into one of their own.

    `engines` are addresses to scrape, `receiver` is where alerts go. Between `lay_out` and the context, the
    copies may be changed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        engines: Sequence[str],
        receiver: str,
        prometheus_port: int,
        alertmanager_port: int,
    ) -> None:
        self._programs = Programs.find()
        self.folder = folder
        self._engines = list(engines)
        self._receiver = receiver
        self.prometheus = f"http://{HOST}:{prometheus_port}"
        self.alertmanager = f"http://{HOST}:{alertmanager_port}"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def lay_out(self) -> None:
        """Copy the files and put the addresses in."""
        shutil.copytree(HERE / "prometheus", self.folder / "prometheus")
        shutil.copytree(HERE / "alertmanager", self.folder / "alertmanager")
        _replace(self.folder / "prometheus/prometheus.yml", "http://localhost:9090", self.prometheus)
        _replace(self.folder / "alertmanager/alertmanager.yml", "localhost:9095", self._receiver)
        self.scrape(self._engines)
        own = [{"targets": [self.alertmanager.removeprefix("http://")]}]
        (self.folder / "prometheus/targets/alertmanager.yml").write_text(json.dumps(own))

    def scrape(self, engines: Sequence[str]) -> None:
        """Scrape these from now on."""
        file = self.folder / "prometheus/targets/callfunnel.yml"
        unfinished = file.with_suffix(".new")
        unfinished.write_text(json.dumps([{"targets": list(engines)}]))  # JSON is YAML
        unfinished.replace(file)

    def __enter__(self) -> Self:
        commands = {
            "Alertmanager": [
                self._programs.alertmanager,
                f"--config.file={self.folder / 'alertmanager/alertmanager.yml'}",
                f"--storage.path={self.folder / 'alerts'}",
                f"--web.listen-address={self.alertmanager.removeprefix('http://')}",
                "--cluster.listen-address=",
            ],
            "Prometheus": [
                self._programs.prometheus,
                f"--config.file={self.folder / 'prometheus/prometheus.yml'}",
                f"--storage.tsdb.path={self.folder / 'samples'}",
                f"--web.listen-address={self.prometheus.removeprefix('http://')}",
                f"--web.user-assets={HERE / 'runbooks'}",
            ],
        }
        try:
            for name, command in commands.items():
                self.processes[name] = start_process(command, self._log(name))
            wait_for(f"{self.alertmanager}/-/ready", self.look)
            wait_for(f"{self.prometheus}/-/ready", self.look)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes.values()):
            end_process(process, STOP_SECONDS)

    def look(self) -> None:
        """Raises Failure when one of them has ended."""
        for name, process in self.processes.items():
            if process.poll() is not None:
                if process.returncode < 0:
                    raise Failure(f"{name} was ended by {signal.Signals(-process.returncode).name}.")
                words = " / ".join(self._log(name).read_text(errors="replace").splitlines()[-3:])
                raise Failure(f"{name} ended with exit code {process.returncode}: {words}")

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text, f"{file} says nothing of {old}"
    file.write_text(text.replace(old, new))


def wait_for(url: str, look: Callable[[], None]) -> None:
    """Until `url` answers with 200; `look` may say that there is nothing to wait for."""
    deadline = time.monotonic() + START_SECONDS
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        look()
        try:
            with opener.open(url, timeout=2):
                return
        except OSError as error:
            if time.monotonic() > deadline:
                raise Failure(f"{url} does not answer: {error}") from None
        time.sleep(0.1)


def run(kind: str, seats: int, seed: int) -> int:
    """Run the stack; the exit code."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console = Console(highlight=False, soft_wrap=True)
    with ExitStack() as stack:
        try:
            _run(kind, seats, seed, console, stack)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            console.print("\nEnding what was started …")
    return exit_codes.OK


def _run(kind: str, seats: int, seed: int, console: Console, stack: ExitStack) -> None:
    Programs.find()
    ports = _ports()
    broker = stack.enter_context(_broker(kind, ports["Kafka"], console))
    settings = Settings.from_environ(
        os.environ, broker=broker.address, profile="development", http_port=ports["engine"]
    )
    topics.wait_for_broker(settings, console.print)
    topics.create(settings)
    folder = stack.enter_context(Scratch("stack")).path

    receiver = stack.enter_context(
        Receiver(
            ports["receiver"], lambda name, alert: name != "watchdog" and console.print(line(name, alert))
        )
    )
    monitoring = Monitoring(
        folder,
        engines=[f"{HOST}:{settings.http_port}"],
        receiver=receiver.address,
        prometheus_port=ports["Prometheus"],
        alertmanager_port=ports["Alertmanager"],
    )
    monitoring.lay_out()
    stack.enter_context(monitoring)
    workers = stack.enter_context(
        started_workers(settings, 1, console, view="true", http_port=str(settings.http_port))
    )

    def tend() -> None:
        workers.tend()
        monitoring.look()

    url = f"http://{HOST}:{settings.http_port}"
    wait_for(f"{url}/-/ready", tend)
    (worker,) = workers.processes.values()
    console.print(
        f"\nA live floor of {seats} seats calls.\n\n"
        f"  the funnel     {url}/\n"
        f"  Prometheus     {monitoring.prometheus}/alerts\n"
        f"  Alertmanager   {monitoring.alertmanager}/\n"
        f"  Kafka          {broker.address}\n"
        f"  terminal       {program()} top --url {url}\n"
        f"  kill it        kill -9 {worker.pid}    (it is started again; no number changes)\n"
        f"  its settings   {export(settings)}\n\n"
        "Alerts are told here; those about the floor only in its calling hours, Monday to Friday, 09:00 to\n"
        "20:00 UTC (deploy/prometheus/rules/calling-hours.yml). For Grafana see grafana/README.md.\n"
        "Ctrl-C ends everything."
    )
    go_live(settings, tend, seats=seats, seed=seed)


def line(receiver: str, alert: Alert) -> str:
    """An alert as the terminal shows it; a campaign may be called what looks like markup."""
    state = "[bold red]firing  [/]" if alert["status"] == "firing" else "[green]resolved[/]"
    return f"{state} " + escape(
        f"to {receiver}: {alert['labels']['alertname']}: {alert['annotations']['summary']}"
    )


@contextmanager
def _broker(kind: str, port: int, console: Console) -> Iterator[Broker]:
    if kind == "embedded":
        broker: Broker = EmbeddedBroker(port=port)
    else:
        try:
            kraft.find_java()
            kraft.fetch()
        except kraft.NotInstallable as lacking:
            raise Missing(
                f"{lacking.message} Or take the embedded broker: `make stack ARGS='--broker embedded'`."
            ) from None
        broker = kraft.Cluster(port=port)
    console.print("Starting Kafka …" if kind == "kafka" else "Starting the embedded broker …")
    with broker:
        yield broker


def _ports() -> dict[str, int]:
    """The usual ports, and free ones in the place of those that are taken."""
    return {name: port if is_free(port) else free_port() for name, port in USUAL.items()}


@click.command()
@click.option(
    "--broker",
    "kind",
    type=click.Choice(["kafka", "embedded"]),
    default="kafka",
    show_default=True,
    help="Apache Kafka takes Java and Maven, the embedded broker nothing.",
)
@click.option(
    "--seats", type=click.IntRange(1, 2000), default=100, show_default=True, help="Agents who call."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the floor.")
def main(kind: str, seats: int, seed: int) -> None:
    """Kafka, a worker, Prometheus, Alertmanager and a live floor on this machine, until Ctrl-C."""
    sys.exit(run(kind, seats, seed))


if __name__ == "__main__":
    main()

"""Apache Kafka in KRaft mode on this machine, from its Maven artifacts: it takes Java and Maven, no more.

    python deploy/kafka/kraft.py run --port 9092 --brokers 1
    python deploy/kafka/kraft.py tool console-consumer --bootstrap-server 127.0.0.1:9092 --topic call-events

The law: it needs nobody's hand. The jars are fetched once per user, who lacks something is told what to
install, and no JVM outlives the process that started it.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import re
import secrets
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from string import Template
from typing import Any, Self
from xml.etree import ElementTree

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parents[1]))  # for a run as a script, from a checkout that is not installed

import click  # noqa: E402

from callfunnel.agents.config import Settings, export  # noqa: E402
from callfunnel.agents.demo.broker import HOST, end_process, free_port, is_free, speaks_kafka, start_process  # noqa: E402
from callfunnel.agents.errors import BrokerUnavailable  # noqa: E402
from callfunnel.agents.scratch import DataFolder  # noqa: E402

OLDEST_JAVA = 17
START_SECONDS = 90.0
STOP_SECONDS = 20.0


TOOLS = {
    "acls": "org.apache.kafka.tools.AclCommand",
    "configs": "kafka.admin.ConfigCommand",
    "console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "reassign-partitions": "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
    "topics": "org.apache.kafka.tools.TopicCommand",
    "transactions": "org.apache.kafka.tools.TransactionsCommand",
}
"""Kafka's own tools: topics is `kafka-topics.sh` in the folder bin of a Kafka that was unpacked."""


class NotInstallable(BrokerUnavailable):
    """This machine lacks what Kafka needs: Java, Maven, or a way to the Maven repository."""


class Node:
    """One broker of a cluster, which is also one of its controllers."""

    def __init__(self, number: int, port: int, folder: Path, command: Sequence[str]) -> None:
        self.number = number
        self.port = port
        self.log = folder / "kafka.log"
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"{HOST}:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether its process exists; a paused one does."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it and return at once; `Cluster.wait` tells when it is usable."""
        if not is_free(self.port):
            raise BrokerUnavailable(
                f"Port {self.port} is taken: something listens at {self.address} already."
            )
        self._process = start_process(self._command, self.log)

    def stop(self) -> None:
        """Shut it down cleanly."""
        if self._process is not None:
            self.resume()
            end_process(self._process, STOP_SECONDS)

    def terminate(self) -> None:
        """Ask it to shut down, without waiting."""
        self.resume()
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with -9, as a power cut would."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def pause(self) -> None:
        """Freeze it and wait until it is: it holds its connections and answers nobody."""
        self._signal(signal.SIGSTOP)
        if self._process is not None:  # threads run on until the one that takes the signal is scheduled
            os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Let a paused node go on."""
        self._signal(signal.SIGCONT)

    def last_words(self) -> str:
        """The end of its log."""
        lines = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        return "\n".join(lines[-15:]) or "(its log is empty)"

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


class Cluster:
    """One or three nodes on loopback; with three, Kafka's own topics have three copies.

    Without `data` everything lies in a temporary folder that `stop` removes; a `data` folder is taken up
    again by the next start with as many brokers. `port` is the first broker's, the others follow it.
    `properties` are added to those of `server.properties`, on every node, and may use its names in braces.
    """

    def __init__(
        self,
        *,
        brokers: int = 1,
        port: int | None = None,
        data: Path | None = None,
        properties: Mapping[str, str] | None = None,
    ) -> None:
        self._data = DataFolder("kafka", data)
        self._properties = properties or {}
        self._count = brokers
        self._first_port = port
        self.nodes: tuple[Node, ...] = ()

    @property
    def address(self) -> str:
        """The addresses of all brokers, with commas."""
        return ",".join(node.address for node in self.nodes)

    def start(self) -> None:
        """Raises NotInstallable when the machine lacks something, BrokerUnavailable when a node fails."""
        java = find_java()
        jars = fetch()
        folder = self._data.open()
        try:
            self.nodes = tuple(_lay_out(folder, self._ports(), [*java, *_jvm(jars)], self._properties))
            for node in self.nodes:
                node.start()
            self.wait()
        except BaseException:
            self.stop()
            raise

    def wait(self, timeout_seconds: float = START_SECONDS) -> None:
        """Until every node that runs answers and knows all nodes that run."""
        deadline = time.monotonic() + timeout_seconds
        running = [node for node in self.nodes if node.is_running]
        while True:
            if all(speaks_kafka(HOST, node.port) for node in running) and all(
                _brokers_known(node.port) >= len(running) for node in running
            ):
                return
            for node in running:
                if not node.is_running or time.monotonic() > deadline:
                    raise BrokerUnavailable(f"Kafka does not start at {node.address}:\n{node.last_words()}")
            time.sleep(0.1)

    def restart(self, node: Node) -> None:
        """Stop a node cleanly if it runs, start it, and wait until the cluster is whole again."""
        node.stop()
        node.start()
        self.wait()

    def stop(self) -> None:
        """Shut all nodes down, and remove the data unless it is to be kept."""
        for node in self.nodes:
            node.terminate()
        for node in self.nodes:
            node.stop()
        self._data.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _ports(self) -> list[int]:
        if self._first_port is None:
            return [free_port() for _ in range(self._count)]
        return [self._first_port + place for place in range(self._count)]


def version() -> str:
    """The version of Kafka that `pom.xml` names."""
    found = ElementTree.parse(HERE / "pom.xml").findtext(".//{*}kafka.version")
    assert found is not None
    return found


@cache
def lacking() -> str:
    """What keeps Apache Kafka from running here, in a sentence, or nothing; asked once, it may fetch it."""
    try:
        find_java()
        fetch()
    except NotInstallable as lacks:
        return lacks.message.splitlines()[0]
    return ""


def find_java() -> list[str]:
    """The command of a Java that can run Kafka. Raises NotInstallable."""
    home = os.environ.get("JAVA_HOME")
    java = shutil.which("java", path=f"{home}/bin") if home else shutil.which("java")
    if java is not None:
        told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        found = re.search(r'version "(\d+)', told)
        if found and int(found[1]) >= OLDEST_JAVA:
            return [java]
    what = "no Java is installed" if java is None else f"{java} is older"
    raise NotInstallable(
        f"Apache Kafka {version()} needs Java {OLDEST_JAVA} or newer, and {what}. "
        f"Install it, on Debian with `apt install openjdk-{OLDEST_JAVA}-jre-headless maven`."
    )


def fetch() -> Path:
    """The folder with Kafka's jars, fetched through Maven the first time. Raises NotInstallable."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "callfunnel"
    jars = cache / f"kafka-{version()}"
    if jars.is_dir():
        return jars
    maven = shutil.which("mvn")
    if maven is None:
        raise NotInstallable(
            f"Apache Kafka {version()} is fetched with Maven, and no `mvn` is installed. "
            "Install it, on Debian with `apt install maven`."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / f"kafka-{version()}.lock", "w") as lock:
        fcntl.flock(
            lock, fcntl.LOCK_EX
        )  # two that start at once: the second finds what the first has fetched
        if jars.is_dir():
            return jars
        click.echo(f"Fetching Apache Kafka {version()} (55 MB, once) into {jars}", err=True)
        with tempfile.TemporaryDirectory(dir=cache) as unfinished:
            told = subprocess.run(
                [
                    *(
                        maven,
                        "--quiet",
                        "--batch-mode",
                        "--strict-checksums",
                        "--file",
                        str(HERE / "pom.xml"),
                    ),
                    "dependency:copy-dependencies",
                    "-DincludeScope=runtime",
                    f"-DoutputDirectory={unfinished}/jars",
                ],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if told.returncode != 0:
                last = "\n".join((told.stdout + told.stderr).strip().splitlines()[:5])
                raise NotInstallable(f"Maven cannot fetch Apache Kafka {version()}:\n{last}")
            Path(unfinished, "jars").rename(jars)
    return jars


def _jvm(jars: Path) -> list[str]:
    # Java itself expands the star of the class path; C1 alone starts twice as fast.
    return [
        *("-Xms128m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData"),
        f"-Dlog4j2.configurationFile={HERE / 'log4j2.properties'}",
        *("-cp", f"{jars}/*"),
    ]


def _lay_out(folder: Path, ports: Sequence[int], java: Sequence[str], more: Mapping[str, str]) -> list[Node]:
    """Write each node's properties, and format what is not formatted yet."""
    cluster = _identity(folder, len(ports))
    controllers = [f"{HOST}:{controller['port']}" for controller in cluster["controllers"]]
    voters = ",".join(
        f"{number}@{HOST}:{controller['port']}:{controller['directory']}"
        for number, controller in enumerate(cluster["controllers"], 1)
    )
    added = "".join(f"{key}={value}\n" for key, value in more.items())
    template = Template((HERE / "server.properties").read_text() + added)
    nodes, formats = [], []
    for number, (port, controller) in enumerate(zip(ports, cluster["controllers"], strict=True), 1):
        home = folder / f"node-{number}"
        home.mkdir(exist_ok=True)
        properties = home / "server.properties"
        properties.write_text(
            template.substitute(
                node=number,
                nodes=len(ports),
                min_insync=len(ports) // 2 + 1,
                host=HOST,
                port=port,
                controller_port=controller["port"],
                controllers=",".join(controllers),
                logs=home / "data",
            )
        )
        storage = [*java, "kafka.tools.StorageTool", "format", "--ignore-formatted", "-t", cluster["id"]]
        formats.append(
            subprocess.Popen(
                [*storage, "-c", str(properties), "--initial-controllers", voters],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        own = f"-Djava.io.tmpdir={home}"
        nodes.append(Node(number, port, home, [*java, own, "kafka.Kafka", str(properties)]))
    for told in [(process.communicate()[0], process.returncode) for process in formats]:
        if told[1] != 0:
            raise BrokerUnavailable(f"Kafka cannot format {folder}:\n{told[0]}")
    return nodes


def _identity(folder: Path, count: int) -> dict[str, Any]:
    """The cluster's id and its controllers: drawn once, because the formatted storage holds them."""
    file = folder / "cluster.json"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        controllers = [{"port": free_port(), "directory": _uuid()} for _ in range(count)]
        file.write_text(json.dumps({"id": _uuid(), "controllers": controllers}))
    identity: dict[str, Any] = json.loads(file.read_text())
    if len(identity["controllers"]) != count:
        raise BrokerUnavailable(
            f"{folder} holds a cluster of {len(identity['controllers'])} brokers, not of {count}. "
            "Name another folder, or remove this one."
        )
    return identity


def _uuid() -> str:
    """An id in Kafka's own spelling, which must not begin like an option."""
    while True:
        drawn = base64.urlsafe_b64encode(secrets.token_bytes(16)).decode().rstrip("=")
        if not drawn.startswith("-"):
            return drawn


def _brokers_known(port: int) -> int:
    """How many brokers the one at `port` would tell a client of; 0 when it does not say."""
    request = struct.pack(">hhihi", 3, 1, 7, -1, 0)  # Metadata v1, no client id, no topics
    try:
        with socket.create_connection((HOST, port), 1) as connection:
            connection.settimeout(1)
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(12, socket.MSG_WAITALL)
    except OSError:
        return 0
    return int(struct.unpack(">iii", answer)[2]) if len(answer) == 12 else 0


@click.group()
def main() -> None:
    """Apache Kafka on this machine, for development and tests."""


@main.command("fetch")
def fetch_command() -> None:
    """Fetch the jars, so that a later start needs no network."""
    find_java()
    click.echo(fetch())


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("name", type=click.Choice(list(TOOLS)))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def tool(name: str, arguments: tuple[str, ...]) -> None:
    """Run a tool of Kafka's own with its own arguments, on any cluster that can be reached."""
    java = [*find_java(), *_jvm(fetch())]
    os.execv(java[0], [*java, TOOLS[name], *arguments])


@main.command()
@click.option(
    "--port", default=9092, show_default=True, help="Port of the first broker; the others follow it."
)
@click.option("--brokers", type=click.Choice(["1", "3"]), default="1", show_default=True, help="How many.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder to keep; without it nothing is kept.")
def run(port: int, brokers: str, data: Path | None) -> None:
    """Run Kafka until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cluster = Cluster(brokers=int(brokers), port=port, data=data)
    try:
        cluster.start()
        kept = f"data in {data}" if data else "nothing is kept"
        click.echo(f"Apache Kafka {version()} listens at {cluster.address} ({kept}). Ctrl-C stops it.")
        profile = "development" if brokers == "1" else "production"
        click.echo(export(Settings.from_environ({}, broker=cluster.address, profile=profile)))
        while all(node.is_running for node in cluster.nodes):
            time.sleep(0.5)
        dead = next(node for node in cluster.nodes if not node.is_running)
        raise BrokerUnavailable(f"The broker at {dead.address} ended:\n{dead.last_words()}")
    except KeyboardInterrupt:
        click.echo("Stopping.")
    finally:
        cluster.stop()


if __name__ == "__main__":
    main()

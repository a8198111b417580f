"""The broker a command talks to: one that runs already, or one of our own for a laptop without Kafka.

The law: what `start` started is gone after `stop`, and on Linux a broker never outlives the process that
started it, however that one dies.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol, Self

from callfunnel.agents.config import Settings
from callfunnel.agents.errors import BrokerUnavailable
from callfunnel.agents.scratch import DataFolder
from callfunnel.agents.versions import pip_install

HOST = "127.0.0.1"
NOIDA = "noida-db==0.2.3"


class Broker(Protocol):
    """Something with an address at which Kafka's protocol is spoken from `start` to `stop`."""

    @property
    def address(self) -> str: ...

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class RunningBroker:
    """A broker that somebody else runs: nothing to start, nothing to stop."""

    def __init__(self, address: str) -> None:
        self.address = address

    def start(self) -> None:
        """Nothing to do."""

    def stop(self) -> None:
        """Nothing to do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to do."""


class EmbeddedBroker:
    """noida-db's Kafka as a child process on loopback: one broker, no security, for demos and quick tests.

    It ends with the thread that started it, so start it where the program waits. Without `data_dir` its data
    is temporary. It never notices dead group members (see `remove_dead_members`), deletes records by their
    own timestamps (a history needs `retention.ms=-1`), and a kill -9 loses its last seconds.
    """

    def __init__(self, data_dir: Path | None = None, port: int | None = None) -> None:
        self._data = DataFolder("broker", data_dir)
        self._port = port
        self._process: subprocess.Popen[bytes] | None = None
        self.address = ""

    def start(self) -> None:
        """Raises BrokerUnavailable when noida-db is not installed or does not come up."""
        program = embedded_program()
        if program is None:
            raise BrokerUnavailable(
                f"The embedded broker is not installed. Install it with `{pip_install(NOIDA)}`, "
                "or name a running Kafka with --broker HOST:PORT."
            )
        folder = self._data.open()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._run(program, folder)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the broker and remove its temporary folder. Does nothing when it does not run."""
        if self._process is not None:
            # noida-db takes its time to end; what is thrown away need not be in order.
            end_process(self._process, patience_seconds=5 if self._data.kept else 0.2)
            self._process = None
        self._data.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _run(self, program: Path, folder: Path) -> None:
        port = self._port or free_port()
        self.address = f"{HOST}:{port}"
        if not is_free(port):
            raise BrokerUnavailable(f"Port {port} is taken: something listens at {self.address} already.")
        if not os.access(program, os.X_OK):  # wheels lose the bit
            program.chmod(0o755)
        log = folder / "broker.log"
        command = [program, "start", "--only", "kafka", "--kafka-port", str(port), "--data-dir", folder]
        self._process = start_process([str(part) for part in command], log)
        deadline = time.monotonic() + 15
        while not speaks_kafka(HOST, port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise BrokerUnavailable(f"The embedded broker does not start at {self.address}. {_told(log)}")
            time.sleep(0.02)


def choose(address: str | None, data_dir: Path | None = None) -> Broker:
    """The running broker at `address`, or an embedded one when no address is given."""
    return RunningBroker(address) if address else EmbeddedBroker(data_dir)


def remove_dead_members(settings: Settings, alive: Collection[str] = ()) -> tuple[str, ...]:
    """Take the members of the consumer group that are not `alive` out of it; their ids.

    `alive` holds the `instance` settings of the workers that run. A running worker that is removed all the
    same joins again. The embedded broker needs this after a worker was killed; Kafka does it by itself.
    """
    from kafka.admin import MemberToRemove

    from callfunnel.agents.kafka.connection import admin_client

    with admin_client(settings) as admin:
        members = admin.describe_groups([settings.app_id])[settings.app_id]["members"]
        dead = [
            MemberToRemove(member["member_id"], member["group_instance_id"])
            for member in members
            if member["group_instance_id"] not in alive
        ]
        if dead:
            admin.remove_group_members(settings.app_id, dead)
        return tuple(member.member_id for member in dead)


def embedded_program() -> Path | None:
    """noida-db's own executable; its Python wrapper would leave it running when it is killed."""
    from importlib.util import find_spec

    spec = find_spec("noida_db")
    if spec is None or spec.origin is None:
        return None
    program = Path(spec.origin).with_name("noida-db")
    return program if program.is_file() else None


_PORTS = range(20_000, 32_000)
"""Below those that systems give to outgoing connections, which would take a port before its server does."""

_claims: list[socket.socket] = []


def free_port() -> int:
    """A port of loopback for a server that this process will start: nobody listens there now.

    On Linux no other process is given it by `free_port` while this one lives. Raises BrokerUnavailable when
    no port is left.
    """
    try:
        socket.create_server((HOST, 0)).close()
    except OSError as error:
        raise BrokerUnavailable(
            f"Nothing can listen at {HOST} on this machine ({error.strerror}), and what is started here "
            "listens there alone. Name a Kafka that runs with --broker HOST:PORT, an IPv6 address in "
            "brackets: [::1]:9092."
        ) from None
    for port in random.Random().sample(_PORTS, len(_PORTS)):
        claim = socket.socket(socket.AF_UNIX)
        with suppress(OSError):
            if sys.platform == "linux":  # the name is not a file there, and goes with the process
                claim.bind(f"\0callfunnel-port-{port}")
            if is_free(port):
                _claims.append(claim)
                return port
        claim.close()
    raise BrokerUnavailable(f"No port of {HOST} from {_PORTS.start} to {_PORTS.stop - 1} is free.")


def is_free(port: int) -> bool:
    """Whether a server could listen there now."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return False
    return True


def speaks_kafka(host: str, port: int, timeout_seconds: float = 1.0) -> bool:
    """Whether a Kafka broker answers an ApiVersions request there."""
    correlation, client = 7, b"callfunnel"
    request = struct.pack(">hhih", 18, 0, correlation, len(client)) + client
    try:
        with socket.create_connection((host, port), timeout_seconds) as connection:
            connection.settimeout(timeout_seconds)
            connection.sendall(struct.pack(">i", len(request)) + request)
            answer = connection.recv(10, socket.MSG_WAITALL)
    except OSError:
        return False
    return len(answer) == 10 and struct.unpack(">iih", answer)[1:] == (correlation, 0)


_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG, which the exec keeps
if os.getppid() != int(sys.argv[1]):
    sys.exit("its parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def start_process(
    command: Sequence[str], log: Path, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Run `command` (its program by path) so that it dies with the calling thread; its output goes to `log`.

    Ctrl-C in the terminal does not reach it: whoever started it ends it, in the right order.
    """
    if sys.platform == "linux":
        command = [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid()), *command]
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )


def end_process(process: subprocess.Popen[bytes], patience_seconds: float) -> None:
    """SIGTERM, and SIGKILL when it is still there after `patience_seconds`."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(patience_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _told(log: Path) -> str:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    told = [line for line in lines if line.strip() and "weak version" not in line][-5:]
    return "It says: " + " / ".join(told) if told else "It says nothing."

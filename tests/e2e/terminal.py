"""A program as a person at a terminal has it: what it says, Ctrl-C, and what it leaves behind."""

import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Self

import patience
from callfunnel.agents.config import PREFIX
from integration.workers import ROOT
from patience import Deadline

_TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A program with a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self._master, slave = pty.openpty()
        own = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        self._environ = own
        self.process = subprocess.Popen(
            # The terminal becomes the one that Ctrl-C comes from.
            [sys.executable, "-c", _TAKE_TERMINAL, *command],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=own,
            cwd=ROOT,
            start_new_session=True,
        )
        os.close(slave)
        os.set_blocking(self._master, False)
        self.said = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(60)
        os.close(self._master)

    def read(self) -> str:
        try:
            while chunk := os.read(self._master, 65_536):
                self.said += chunk.decode(errors="replace")
        except OSError:  # nothing now, or the end
            pass
        return self.said

    def wait_for(self, text: str, seconds: float) -> None:
        deadline = Deadline(seconds)
        while text not in self.read():
            assert self.process.poll() is None, self.said
            assert not deadline.is_over, self.said
            time.sleep(0.1)

    def _exit_code(self, seconds: float) -> int:
        deadline = Deadline(seconds)
        while self.process.poll() is None:
            self.read()  # whoever writes to a full terminal waits
            assert not deadline.is_over, self.said
            time.sleep(0.05)
        return self.process.returncode

    def check(self) -> subprocess.CompletedProcess[str]:
        """`callfunnel check` with the settings that the program says are its own."""
        (told,) = re.findall(r" export (.+)", self.read())
        environ = dict(word.split("=", 1) for word in shlex.split(told))
        command = [sys.executable, "-m", "callfunnel.agents.cli", "check"]
        return patience.run(command, seconds=60, cwd=ROOT, env=self._environ | environ)

    def end(self) -> None:
        """Ctrl-C, and it ends with 0 and leaves no process behind."""
        started = children(self.process.pid)
        assert len(started) >= 2
        os.write(self._master, b"\x03")
        assert self._exit_code(60) == 0
        assert {pid for pid in started if Path(f"/proc/{pid}").exists()} == set()
        assert "Traceback" not in self.read()


def children(pid: int) -> set[int]:
    """A process's children and theirs."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found, new = set(), {pid}
    while new := {child for child, parent in parents.items() if parent in new}:
        found |= new
    return found

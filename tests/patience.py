"""Limits of waits: what they say on a quiet machine, more on a busy one, as a probe of it tells.

The law: a test waits for a condition. Its limit is there to end a wait that would never end, never to say
that the machine was slow.
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

QUIET_SECONDS = 0.03
"""What the probe takes on a quiet machine."""
MOST = 12.0


def slowness() -> float:
    """How many times longer than on a quiet machine a process needs now to start and to do a little."""

    def probe() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-I", "-S", "-c", "sum(range(200_000))"], check=True)
        return time.perf_counter() - began

    return min(MOST, max(1.0, max(probe() for _ in range(3)) / QUIET_SECONDS))


class Deadline:
    """The end of a wait that may take so many seconds on a quiet machine."""

    def __init__(self, seconds: float) -> None:
        self._began = time.monotonic()
        self._seconds = seconds
        self._until = self._began + seconds

    @property
    def is_over(self) -> bool:
        while time.monotonic() > self._until:
            until = self._began + self._seconds * slowness()
            if until <= self._until:
                return True
            self._until = until
        return False


def ended(process: subprocess.Popen[Any], seconds: float) -> tuple[Any, Any]:
    """What a process wrote to stdout and stderr, when it has ended; after the limit it is killed.

    Raises `subprocess.TimeoutExpired`.
    """
    deadline = Deadline(seconds)
    while True:
        try:
            return process.communicate(timeout=1)
        except subprocess.TimeoutExpired:
            if deadline.is_over:
                process.kill()
                process.communicate()
                raise


def run(command: Sequence[Any], seconds: float, **options: Any) -> subprocess.CompletedProcess[Any]:
    """`subprocess.run` with what it wrote as text, and a limit as it is here."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    with subprocess.Popen(command, **options) as process:
        out, err = ended(process, seconds)
    return subprocess.CompletedProcess(command, process.returncode, out, err)

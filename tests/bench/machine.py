"""What a figure depends on, and what the operating system says of a process while it lives."""

import os
import platform
import time
from pathlib import Path

from agents.versions import installed_version
from deploy.kafka import kraft

_TICKS = os.sysconf("SC_CLK_TCK")


def about() -> dict[str, str]:
    """The line that belongs below every figure."""
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "kafka": kraft.version(),
        "callfunnel": installed_version(),
    }


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads of the process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_mib(pid: int, what: str) -> float:
    """`VmRSS`, the resident memory now, or `VmHWM`, the most there was."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:"))

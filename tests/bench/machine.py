"""What a figure depends on, and what the operating system says of a process while it lives."""

import os
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec

from callfunnel.agents.versions import installed_version
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
    """`VmRSS`, the resident memory now, or `VmHWM`, the most there was; 0 of one that has just ended."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{what}:")), 0.0)


def tell(figures: Mapping[str, float], goals: Mapping[str, float], report: Path | None) -> None:
    """Print the figures, each with the goal that it is to stay below, if any; `write` them, too."""
    for name, value in figures.items():
        goal = goals.get(name)
        told = "" if goal is None else f"  (goal {goal:,g}: {'met' if value <= goal else 'missed'})"
        click.echo(f"{name}={value:,.1f}{told}")
    write(report, figures=figures)


def write(report: Path | None, **figures: Any) -> None:
    """Write the figures to the file that was asked for, with what they depend on."""
    if report is not None:
        report.write_bytes(msgspec.json.format(msgspec.json.encode({"about": about()} | figures)))

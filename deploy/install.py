"""Installs what hashed requirement files name into the environment of this Python, and tells how far it is.

    .venv/bin/python deploy/install.py deploy/requirements-engine.txt deploy/requirements-demo.txt

pip alone is silent or tells four lines a package. It runs before anything is installed: the standard library
is all there is.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==", re.MULTILINE)
_SIZE = re.compile(r"\s*Downloading \S+ \(([\d.]+) (bytes|kB|MB)\)")
_NOW = re.compile(r"(?:Collecting|Requirement already satisfied:) ([A-Za-z0-9._-]+)==")
_NOT_HERE = re.compile(r"Ignoring (\S+): markers")
_MB = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0}


class Progress:
    """What pip's lines say: how many of the packages it has come to, and how many MB it downloaded."""

    def __init__(self, packages: Iterable[str]) -> None:
        self._left = set(packages)
        self.packages = len(self._left)
        self._now = ""
        self.downloaded_mb = 0.0

    def told(self, line: str) -> str | None:
        """The progress after this line of pip, if it changed."""
        if found := _NOT_HERE.match(line):
            self._left.discard(_same(found[1]))
            self.packages -= 1
            return None
        if found := _NOW.match(line):
            self._now = found[1]
            self._left.discard(_same(self._now))
        elif found := _SIZE.match(line):
            self.downloaded_mb += float(found[1]) * _MB[found[2]]
        elif line.startswith("Installing collected packages"):
            self._now = "unpacking"
        else:
            return None
        at = self.packages - len(self._left)
        return f"{at} of {self.packages} packages, {self.downloaded_mb:.1f} MB downloaded: {self._now}"


def names(files: Iterable[Path]) -> set[str]:
    """The packages that the files pin."""
    return {_same(name) for file in files for name in _PINNED.findall(file.read_text())}


def _same(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main(arguments: list[str]) -> int:
    """Run pip; its exit code."""
    files = [Path(argument) for argument in arguments]
    progress, begun = Progress(names(files)), time.monotonic()
    try:
        code = _run(pip(files), progress)
    except KeyboardInterrupt:
        code = 130
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr)
    if code == 0:
        took, size = time.monotonic() - begun, _mebibytes(Path(sys.prefix))
        told = f"{progress.packages} packages, {progress.downloaded_mb:.1f} MB downloaded in {took:.0f} s"
        print(f"{Path(sys.prefix).name}: {told}; it has {size:.0f} MiB.", file=sys.stderr)
    return code


def pip(files: list[Path]) -> list[str]:
    """The command. Python compiles what it imports, in less time and room, unless it may not keep that."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    command += [] if sys.dont_write_bytecode else ["--no-compile"]
    return [*command, "--require-hashes", *(f"--requirement={file}" for file in files)]


def _run(command: list[str], progress: Progress) -> int:
    environ = os.environ | {"PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if (told := progress.told(line)) and sys.stderr.isatty():
                print(f"\r\033[K  {told}", end="", file=sys.stderr, flush=True)
    return running.returncode


def _mebibytes(folder: Path) -> float:
    return sum(file.lstat().st_blocks for file in folder.rglob("*")) / 2048


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Every command that the repository tells somebody to run: where it is told, and its words.

Told is what stands in `backticks` or “quotes”, in a line of a fenced block, or in an indented line of a
docstring or a comment, and begins with a program that is known here.
"""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deploy.kafka import kraft

ROOT = Path(__file__).parents[2]
FOLDERS = ("agents", "deploy", "grafana", "schemas", "streams", "tests/bench", "tests/faults")
TEXTS = {".py", ".md", ".yml", ".yaml", ".html", ".js", ".xml", ".properties", ""}

_BEGIN = re.compile(
    r"([A-Z_]+=\S* )*([\w./-]*/)?(callfunnel|make|python3?|pip|kafka-[\w-]+(\.sh)?)(?= |$)|export [A-Z_]+="
)
_TOOL = re.compile(rf"(?<![\w/-])kafka-(?:{'|'.join(kraft.TOOLS)})(?![\w-])(?:\.sh)?")
"""However it is told."""
_FENCED = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"^(?:#  +|  +|\$ )(\S.*)$", re.MULTILINE)
_FILLED_IN = "VALUE"


class Told(NamedTuple):
    """A command and where it is told."""

    where: str
    environ: dict[str, str]
    words: list[str]

    def __str__(self) -> str:
        return f"{self.where}: {shlex.join([*(f'{k}={v}' for k, v in self.environ.items()), *self.words])}"


def all_told() -> list[Told]:
    return [told for file in files() for told in told_in(str(file.relative_to(ROOT)), file.read_text())]


def files() -> Iterator[Path]:
    yield from (ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile"))
    for folder in FOLDERS:
        for file in sorted((ROOT / folder).rglob("*")):
            if file.is_file() and file.suffix in TEXTS and "__pycache__" not in file.parts:
                yield file


def told_in(where: str, text: str) -> list[Told]:
    if where == "Makefile":
        named = re.findall(r"^([a-z-]+):.*## .*?\((.+)\)", text, re.MULTILINE)
        lines = [
            f"make {target} {found}"
            for target, more in named
            for found in re.findall(r'[A-Z]+="[^"]+"', more)
        ]
    elif where.endswith(".py"):
        lines = [
            line for said in _strings(text) for line in (*_quoted(said), *_indented(inspect.cleandoc(said)))
        ]
    elif where.endswith(".md"):
        lines = [*_fenced(text), *_quoted(_FENCED.sub("", text))]
    elif where.endswith(".js"):
        lines = _quoted(text.replace("`", ""))
    else:
        lines = [*_quoted(text), *_indented(text)]
    lines += _TOOL.findall(text)
    return [told for line in lines for told in _parsed(where, line)]


def _strings(text: str) -> Iterator[str]:
    """What a program may say. What it fills in directly behind a word are options, and left out."""
    inside: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node)}
            parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            yield re.sub(r"(?<=\w)\0", "", "".join(map(str, parts))).replace("\0", _FILLED_IN)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def _quoted(text: str) -> list[str]:
    spans = re.findall(r"`([^`]+)`|“([^”]+)”", text)
    return [line for span in spans if _BEGIN.match(line := " ".join("".join(span).split()))]


def _indented(text: str) -> list[str]:
    """What stands more than a space behind it says what it does."""
    return [re.split(r"\s{2,}", line)[0] for line in _INDENTED.findall(text) if _BEGIN.match(line)]


def _fenced(text: str) -> Iterator[str]:
    for kind, block in _FENCED.findall(text):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.strip()
            if kind == "console":
                line = line.removeprefix("$ ") if line.startswith("$ ") else ""
            if _BEGIN.match(line):
                yield line


def _parsed(where: str, line: str) -> Iterator[Told]:
    """A line may hold several: `a | b`, and in a table `a b \\| c` for `a b` or `a c`."""
    first, *others = line.split(r" \| ")
    if others:
        before = first.rsplit(" ", 1)[0]
        for one in (first, *(f"{before} {other}" for other in others)):
            yield from _parsed(where, one)
        return
    lexer = shlex.shlex(first.replace("…", ""), posix=True, punctuation_chars="|;&<>")
    lexer.wordchars += "$%^+@,:!{}[]()"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) - set("|;&"):
            words.append(word)
            continue
        environ = {}
        while words and (found := re.match(r"([A-Z_]+)=(.*)", words[0])):
            environ[found[1]] = found[2]
            del words[0]
        if words:
            yield Told(where, environ, words)
        words = []

"""Every command that is told somewhere can be run: it exists, and so do its options and settings."""

import importlib
import re
import subprocess
import sys
import tomllib
from itertools import groupby
from pathlib import Path

import click
import pytest
from packaging.requirements import Requirement

from callfunnel.agents.cli import callfunnel
from callfunnel.agents.config import PREFIX, Settings
from callfunnel.agents.errors import SettingError
from contract.commands import ROOT, Told, all_told, told_in
from deploy import stack
from deploy.kafka import kraft

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = {
    target for line in re.findall(r"^([a-z][a-z -]*):", MAKEFILE, re.MULTILINE) for target in line.split()
}
VARIABLES = set(re.findall(r"\$\((?:or )?\$?\(?([A-Z]+)\b", MAKEFILE))
LOCKED = (ROOT / "deploy/requirements.txt").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXAMPLES = {
    "HOST:PORT": "localhost:9092",
    "N": "1",
    "VALUE": "1",
    "PORT": "9092",
    "SECONDS": "1",
    "PLAN": "kills",
}
"""What a reader puts in the place of a name in capitals, where not anything will do."""


class Impossible(Exception):
    """A command that nobody can run."""


def check(told: Told) -> None:
    """Raises Impossible or click's error."""
    given = {name: value for name, value in told.environ.items() if name.startswith(PREFIX)}
    program, *words = (EXAMPLES.get(word, word) for word in told.words)
    if program == "export":
        given |= dict(word.split("=", 1) for word in words)
    Settings.from_environ(given)
    if ">" in words:
        words = words[: words.index(">")]
    for word in words:
        if re.match(r"(agents|deploy|grafana|schemas|streams|tests)/", word) and not (ROOT / word).exists():
            raise Impossible(f"{word} does not exist")
    match Path(program).name:
        case "callfunnel":
            parse(callfunnel, words)
        case "make":
            check_make(words)
        case "python" | "python3":
            check_python(words)
        case "pip":
            check_pip(words)
        case name if name.startswith("kafka-"):
            if name.removeprefix("kafka-").removesuffix(".sh") not in kraft.TOOLS or not name.endswith(".sh"):
                raise Impossible(f"{name} is brought by nothing here")


def parse(command: click.Command, words: list[str]) -> None:
    """Nothing is run: options and arguments are read."""
    while isinstance(command, click.Group) and words:
        name, *words = words
        found = command.get_command(click.Context(command), name)
        if found is None:
            raise Impossible(f"there is no command {name}")
        command = found
    if isinstance(command, click.Group):  # named, not called
        return
    needs = [one for one in command.params if one.required]
    if words or not needs:
        command.make_context(command.name, list(words))


def check_make(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := given.keys() - VARIABLES:
        raise Impossible(f"the Makefile knows no {unknown}")
    for target in (word for word in words if "=" not in word):
        if target not in TARGETS:
            raise Impossible(f"there is no target {target}")
        arguments = given.get("ARGS", "").split()
        match target.split("-")[0]:
            case "demo":
                parse(callfunnel, ["demo", *arguments])
            case "stack":
                parse(stack.main, arguments)
            case "kafka":
                parse(kraft.run, arguments)
            case "faults" | "soak":
                check_module("faults", [*given.get("PLAN", "").split(), "soak", *arguments])
            case "bench":
                check_module("bench", arguments)


def check_python(words: list[str]) -> None:
    if words[:2] == ["-m", "pip"]:
        check_pip(words[2:])
    elif words[:1] == ["-m"]:
        check_module(words[1], words[2:])
    elif words[:1] == ["deploy/kafka/kraft.py"]:
        parse(kraft.main, words[1:])
        if words[1] == "tool":
            check_tool(words[2], words[3:])
    elif words[:1] == ["deploy/stack.py"]:
        parse(stack.main, words[1:])
    elif words and not (ROOT / words[0]).is_file():
        raise Impossible(f"there is no {words[0]}")


def check_module(name: str, words: list[str]) -> None:
    if importlib.util.find_spec(name) is None and not name.rpartition(".")[2].isupper():
        raise Impossible(f"there is no module {name}")
    if name.split(".")[0] not in ("bench", "faults") or name.isupper() or name == "bench.NAME":
        return
    module = importlib.import_module(name if "." in name else f"{name}.__main__")
    parse(module.main, words)
    if name == "faults":
        plans = importlib.import_module("faults.plans")
        known = plans.PLANS.keys() | plans.SETS.keys()
        if unknown := {word for word in words if re.match("[a-z]", word)} - known:
            raise Impossible(f"there is no plan {unknown}")


def check_pip(words: list[str]) -> None:
    for word in words[1:]:
        if word.startswith("-") or word in (".", EXAMPLES["VALUE"]) or "/" in word:
            continue
        if of_clone := re.fullmatch(r"\.\[([a-z]+)\]", word):
            if of_clone[1] not in PROJECT["project"]["optional-dependencies"]:
                raise Impossible(f"there is no extra {of_clone[1]}")
            continue
        needed = Requirement(word)
        pinned = re.search(rf"^{re.escape(needed.name)}==(\S+)", LOCKED, re.MULTILINE)
        if needed.extras or pinned is None or pinned[1] not in needed.specifier:
            raise Impossible(f"{word} is not what is tested")


HELP: dict[tuple[str, ...], str] = {}


def check_tool(name: str, words: list[str]) -> None:
    """Where Java is, Kafka's tool says itself which options it has."""
    if kraft.lacking():
        return
    commands = tuple(word for word in words if re.fullmatch(r"[a-z]+-[a-z-]+|abort|list|describe", word))
    for asked in ((), commands[:1]):
        if (name, *asked) not in HELP:
            command = [sys.executable, "deploy/kafka/kraft.py", "tool", name, *asked, "--help"]
            told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            HELP[name, *asked] = told.stdout + told.stderr
    helped = HELP[name,] + HELP[name, *commands[:1]]
    for word in words:
        if word.startswith("--") and not re.search(rf"{re.escape(word)}\b", helped):
            raise Impossible(f"{name} has no {word}")


BY_FILE = {where: list(told) for where, told in groupby(all_told(), lambda told: told.where)}


@pytest.mark.parametrize("where", BY_FILE)
def test_a_command_that_is_told_can_be_run(where, tmp_path, monkeypatch):
    for told in BY_FILE[where]:
        files = {"FILE", *(word for word in told.words if re.fullmatch(r"[\w.-]+\.jsonl", word))}
        for name in files:
            (tmp_path / name).touch()
        monkeypatch.chdir(tmp_path)
        try:
            check(told)
        except (Impossible, SettingError, click.ClickException) as error:
            message = error.format_message() if isinstance(error, click.ClickException) else error
            pytest.fail(f"{told}: {message}")


def test_commands_are_found_in_documents_and_in_messages():
    assert len(BY_FILE) > 50
    assert {
        "README.md",
        "agents/kafka/topics.py",
        "deploy/runbooks/RejectedHigh.md",
        "Makefile",
    } <= BY_FILE.keys()
    found = [" ".join(told.words) for told in BY_FILE["README.md"]]
    for told in ("callfunnel topics fix", "make demo ARGS=--once --json", "callfunnel publish FILE"):
        assert told in found


@pytest.mark.parametrize(
    ("where", "text"),
    [
        ("a.md", "`callfunnel nonsense`"),
        ("a.md", "`callfunnel topics\n  mend`"),
        ("a.md", "```\ncallfunnel check --nonsense     # why\n```"),
        ("a.md", "```console\n$ callfunnel check --live\ncallfunnel check\n```"),
        ("a.md", "| `callfunnel topics create \\| nonsense` | |"),
        ("a.md", "`callfunnel generate --events 1 | callfunnel publish - --fast`"),
        ("a.md", "`CALLFUNNEL_BROKERS=a:1 callfunnel check`"),
        ("a.md", "`export CALLFUNNEL_PROFILE=small`"),
        ("a.md", "`make nonsense`"),
        ("a.md", "`make demo NONSENSE=1`"),
        ("a.md", "`make demo ARGS=\"--nonsense\"`"),
        ("a.md", "`make faults-ci PLAN=\"nonsense\"`"),
        ("a.md", "`python -m nonsense`"),
        ("a.md", "`python deploy/nonsense.py`"),
        ("a.md", "`.venv/bin/python deploy/kafka/kraft.py tool nonsense`"),
        ("a.md", "`pip install 'callfunnel[demo]'`"),
        ("a.md", "`pip install noida-db==0.2.2`"),
        ("a.md", "`pip install '.[nonsense]'`"),
        ("a.md", "`kafka-console-consumer --bootstrap-server HOST:PORT`"),
        ("a.md", "`kafka-nonsense.sh`"),
        ("a.py", "'delete its records (kafka-delete-records) and start again'"),
        ("a.py", "f'run `callfunnel topics nonsense{options}`'"),
        ("a.py", "'run `callfunnel ' 'nonsense`'"),
        ("a.py", "def f():\n    '''Does it.\n\n    Example:\n      callfunnel nonsense    and why\n    '''"),
        ("a.yaml", "#   callfunnel nonsense"),
        ("a.js", "tell(`“callfunnel nonsense” says what is missing`)"),
    ],
)  # fmt: skip
def test_a_command_that_cannot_be_run_is_found(where, text):
    *_, told = told_in(where, text)
    with pytest.raises((Impossible, SettingError, click.ClickException)):
        check(told)

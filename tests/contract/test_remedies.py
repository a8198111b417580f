"""Whatever is advised is carried out somewhere, and counted."""

import re
from pathlib import Path

import pytest
from click.testing import CliRunner

from callfunnel.agents.cli import callfunnel
from callfunnel.agents.remedies import REMEDIES
from faults.plans import CI, PLANS

ROOT = Path(__file__).parents[2]
TOLD = {
    str(path.relative_to(ROOT)): path.read_text()
    for pattern in ("agents/**/*.py", "streams/*.py", "deploy/runbooks/*.md", "README.md")
    for path in sorted(ROOT.glob(pattern))
}
NAMED = re.compile(r"\(remedy `?([a-z-]+)`?\)|REMEDIES\[['\"]([a-z-]+)['\"]\]|remedy=\"([a-z-]+)\"")
WRITTEN_OUT = re.compile(
    r"(new|another) (CALLFUNNEL_APP_ID|app id)|[Dd]elete both|kafka-delete-records|kafka-topics\.sh --delete"
)
"""What only a remedy may advise."""


def named_in(where: str) -> set[str]:
    return {next(filter(None, found)) for found in NAMED.findall(TOLD[where])}


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_plan_carries_it_out_and_counts(remedy):
    assert [name for name, plan in PLANS.items() if remedy in plan.remedies]


def test_what_plans_carry_out_is_advised():
    assert {remedy for plan in PLANS.values() for remedy in plan.remedies} == REMEDIES.keys()


def test_most_of_them_are_carried_out_at_every_change():
    assert len({remedy for name in CI for remedy in PLANS[name].remedies}) >= len(REMEDIES) - 1


@pytest.mark.parametrize("where", TOLD)
def test_what_is_named_is_there(where):
    assert named_in(where) <= REMEDIES.keys()


@pytest.mark.parametrize("where", [where for where in TOLD if where != "agents/remedies.py"])
def test_what_is_advised_in_a_message_is_advised_in_one_place(where):
    assert WRITTEN_OUT.findall(TOLD[where]) == []


@pytest.mark.parametrize("remedy", REMEDIES)
def test_a_message_or_a_runbook_names_it(remedy):
    assert [where for where in TOLD if remedy in named_in(where)]


def test_the_command_tells_all_of_them_or_one():
    told = CliRunner().invoke(callfunnel, ["remedies"])
    assert told.exit_code == 0
    assert all(f"\n{remedy}\n" in f"\n{told.output}" for remedy in REMEDIES)
    one = CliRunner().invoke(callfunnel, ["remedies", "rebuild"])
    assert "rebuild" in one.output
    assert "adopt" not in one.output
    unknown = CliRunner().invoke(callfunnel, ["remedies", "pray"])
    assert unknown.exit_code == 2
    assert "there are start-again" in unknown.output

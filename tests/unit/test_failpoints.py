"""The failpoints: one list, each in the code once, and none of them armed unless a setting says so."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from callfunnel.agents import failpoints
from callfunnel.agents.config import Settings
from callfunnel.agents.errors import SettingError

AGENTS = Path(failpoints.__file__).parent
ROOT = Path(__file__).parents[2]


def test_each_point_is_in_the_code_once():
    found = Counter(
        point
        for path in AGENTS.rglob("*.py")
        for point in re.findall(r'failpoints\.hit\("([^"]+)"\)', path.read_text())
    )
    assert found == dict.fromkeys(failpoints.POINTS, 1)
    assert len(found) >= 12


def run(setting: str | None) -> subprocess.CompletedProcess:
    code = f"""
from callfunnel.agents import failpoints
failpoints.arm({setting!r})
for _ in range(3):
    failpoints.hit("sent")
print("lives")
"""
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_the_process_dies_at_the_hit_that_was_named():
    died = run("sent:3")
    assert (died.returncode, died.stdout, died.stderr) == (137, "", "failpoint sent\n")


@pytest.mark.parametrize("setting", [None, "sent:4", "begun:1"])
def test_any_other_hit_is_survived(setting):
    assert (run(setting).returncode, run(setting).stdout) == (0, "lives\n")


@pytest.mark.parametrize("given", ["sent", "sent:0", "sent:1x", "sentry:1", "sent:1\n"])
def test_a_point_that_does_not_exist_is_refused(given):
    with pytest.raises(
        SettingError, match=r"CALLFUNNEL_FAILPOINT: .* allowed: POINT:HIT, with a POINT of revoked, "
    ):
        Settings.from_environ({"CALLFUNNEL_FAILPOINT": given})


def test_no_point_is_armed_by_default():
    assert Settings().failpoint is None
    assert Settings.from_environ({"CALLFUNNEL_FAILPOINT": "sent:3"}).failpoint == "sent:3"

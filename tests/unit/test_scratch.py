import signal
import subprocess
import sys

import pytest

from callfunnel.agents.scratch import HELD, Scratch, remove_left_behind

HOLDER = """
import sys, time
from callfunnel.agents.scratch import Scratch
scratch = Scratch("test")
print(scratch.path, flush=True)
time.sleep(300)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder(folder):
    """A process that holds a folder of its own, and that folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], env={"TMPDIR": str(folder)}, stdout=subprocess.PIPE, text=True
    )
    yield process, folder / process.stdout.readline().strip().rpartition("/")[2]
    process.kill()
    process.wait()
    process.stdout.close()


def test_it_is_removed_with_what_is_in_it(folder):
    with Scratch("test") as scratch:
        (scratch.path / "file").write_text("content")
        assert scratch.path.parent == folder
    assert list(folder.iterdir()) == []


def test_what_a_process_left_that_was_killed_is_removed_by_the_next_one(holder, folder):
    process, left = holder
    (left / "data").mkdir()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert left.exists()
    with Scratch("test") as scratch:
        assert list(folder.iterdir()) == [scratch.path]


def test_what_another_process_works_with_is_left_alone(holder):
    _, its_own = holder
    Scratch("test").remove()
    assert (its_own / HELD).exists()


def test_what_is_of_another_kind_or_not_ours_is_left_alone(folder):
    for name in ("callfunnel-other-1", "callfunnel-test-2"):
        (folder / name).mkdir()
    (folder / "callfunnel-other-1" / HELD).touch()
    remove_left_behind("test")
    assert {path.name for path in folder.iterdir()} == {"callfunnel-other-1", "callfunnel-test-2"}

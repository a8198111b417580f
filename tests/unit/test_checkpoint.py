import os
import signal
import time

import msgspec
import pytest

from callfunnel.agents.errors import Busy, SettingError
from callfunnel.agents.publish.destination import Acknowledged, checksum
from callfunnel.agents.publish.resume import Checkpoint, Done, Lines, ResumePoint, state_folder

DONE = Done(line=40, acknowledged=38, refused=2)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "day.jsonl"
    path.write_text("".join(f"{number}\n" for number in range(1, 101)))
    return path


def checkpoint(tmp_path, file, destination="call-events at 127.0.0.1:9092"):
    return Checkpoint(tmp_path / "state" / "day.json", file, destination)


def read(file, count):
    lines = Lines()
    with file.open("rb") as source:
        for line in list(source)[:count]:
            lines.take(line)
    return lines


def point(file, done=DONE, **fields):
    return ResumePoint("day.jsonl to a topic", done, read(file, done.line).sha256, **fields)


def test_a_new_file_has_nothing_to_resume(tmp_path, file):
    with checkpoint(tmp_path, file) as progress:
        assert progress.load() is None


def test_the_next_run_finds_what_the_last_one_saved(tmp_path, file):
    saved = point(file, topic_id="aB3", last=Acknowledged(1, 37, 12345))
    with checkpoint(tmp_path, file) as progress:
        progress.save(point(file, Done(line=10)))
        progress.save(saved)
    with checkpoint(tmp_path, file) as progress:
        assert progress.load() == saved


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (lambda file: None, True),
        (lambda file: file.write_text(file.read_text() + "101\n"), True),
        (lambda file: file.write_text(file.read_text().replace("\n100\n", "\n0\n")), True),
        (lambda file: os.utime(file, (1, 1)), True),
        (lambda file: file.write_text(file.read_text().replace("\n40\n", "\n041\n")), False),
        (lambda file: file.write_text("0\n" + file.read_text()), False),
        (lambda file: file.write_text("1\n2\n"), False),
        (lambda file: file.write_text(""), False),
    ],
    ids=[
        "as it was",
        "grown",
        "changed behind",
        "touched",
        "changed before",
        "longer before",
        "shorter",
        "empty",
    ],
)
def test_lines_that_are_done_must_be_the_same_and_nothing_else(tmp_path, file, change, fits):
    saved = point(file)
    change(file)
    progress = checkpoint(tmp_path, file)
    said = progress.misfit(saved, read(file, DONE.line))
    assert said is None if fits else said.startswith("the first 40 lines of ")


def test_a_file_that_was_replaced_by_a_copy_fits(tmp_path, file):
    saved = point(file)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(file.read_bytes())
    assert checkpoint(tmp_path, copy).misfit(saved, read(copy, DONE.line)) is None


def test_a_last_line_without_an_end_is_the_same_when_more_comes_behind_it(tmp_path, file):
    file.write_text("1\n2")
    done = Done(line=2, acknowledged=2)
    saved = point(file, done)
    file.write_text("1\n2\n3\n")
    assert checkpoint(tmp_path, file).misfit(saved, read(file, 2)) is None
    file.write_text("1\n23\n")
    assert checkpoint(tmp_path, file).misfit(saved, read(file, 2))


def test_a_progress_file_of_an_earlier_version_fits_the_file_as_it_was(tmp_path, file):
    progress = checkpoint(tmp_path, file)
    stat = file.stat()
    progress.path.parent.mkdir()
    earlier = {
        "publishes": f"{file.resolve()} to call-events at 127.0.0.1:9092",
        "file_version": f"{stat.st_ino}-{stat.st_size}-{stat.st_mtime_ns}",
        "done": {"line": 40, "acknowledged": 38, "refused": 2},
    }
    progress.path.write_bytes(msgspec.json.encode(earlier))
    with progress:
        saved = progress.load()
    assert (saved.done, saved.topic_id, saved.last) == (DONE, "", None)
    assert progress.misfit(saved, read(file, DONE.line)) is None
    assert checkpoint(tmp_path, file, "another at 127.0.0.1:9092").misfit(saved, read(file, DONE.line))
    os.utime(file, (1, 1))
    assert progress.misfit(saved, read(file, DONE.line))


def test_a_finished_file_begins_at_the_start(tmp_path, file):
    with checkpoint(tmp_path, file) as progress:
        progress.save(point(file))
        progress.remove()
    assert list(progress.path.parent.iterdir()) == []
    with checkpoint(tmp_path, file) as progress:
        assert progress.load() is None


def test_a_run_that_saves_nothing_leaves_nothing(tmp_path, file):
    with checkpoint(tmp_path, file) as progress:
        pass
    assert list(progress.path.parent.iterdir()) == []


def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path, file):
    before = file.read_text()
    with Checkpoint(file, file, "a topic") as wrong, pytest.raises(SettingError, match="is no progress file"):
        wrong.load()
    assert file.read_text() == before


@pytest.mark.parametrize("place", [".", "day.jsonl/progress"])
def test_a_place_where_nothing_can_be_kept_is_told_before_anything_is_published(tmp_path, file, place):
    with (
        pytest.raises(SettingError, match=r"cannot be kept at .*--resume-file"),
        Checkpoint(tmp_path / place, file, "a topic"),
    ):
        pass


def test_two_runs_never_share_a_progress_file(tmp_path, file):
    with checkpoint(tmp_path, file) as first:
        for saves in range(3):
            if saves:
                first.save(point(file))
            with (
                pytest.raises(Busy, match=r"to call-events at 127\.0\.0\.1:9092"),
                checkpoint(tmp_path, file),
            ):
                pass
        assert first.load() == point(file)
    with checkpoint(tmp_path, file) as second:
        assert second.load() == point(file)


def test_of_many_runs_one_at_a_time_holds_the_progress_file(tmp_path, file):
    """Each replaces it, and removes it: whoever opened the file before holds nothing."""
    inside = tmp_path / "inside"

    def hold_often():
        held = 0
        while held < 100:
            try:
                with checkpoint(tmp_path, file) as progress:
                    inside.mkdir()
                    progress.save(point(file))
                    inside.rmdir()
                    if held % 2:
                        progress.remove()
                    held += 1
            except Busy:
                time.sleep(0.0005)
        return 0

    runs = []
    for _ in range(4):
        if not (pid := os.fork()):
            code = 1
            try:
                code = hold_often()
            finally:
                os._exit(code)
        runs.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in runs] == [0, 0, 0, 0]


def test_a_run_that_is_killed_while_it_saves_leaves_a_whole_progress_file_and_the_next_one_cleans_up(
    tmp_path, file
):
    """Some of the kills come between the new file and the old one's name."""
    half_done = runs = 0
    while runs < 60 or not half_done:
        assert runs < 2_000, "no kill came between the two"
        runs += 1
        pid = os.fork()
        if not pid:
            try:
                with checkpoint(tmp_path, file) as progress:
                    while True:
                        progress.save(point(file))
            finally:
                os._exit(1)
        path = checkpoint(tmp_path, file).path
        while not path.exists() or not path.stat().st_size:
            time.sleep(0.001)
        time.sleep(runs % 10 / 10_000)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        half_done += len(list(path.parent.iterdir())) - 1
        with checkpoint(tmp_path, file) as progress:
            assert progress.load() == point(file)
            progress.remove()
        assert list(path.parent.iterdir()) == []


def test_what_killed_runs_of_earlier_versions_left_is_cleaned_up(tmp_path, file):
    progress = Checkpoint.in_folder(tmp_path, file, "here")
    progress.path.parent.mkdir()
    for name in (f"{progress.path.name}.123", f"{progress.path.name}.4567", "other.json.89"):
        (progress.path.parent / name).touch()
    with Checkpoint.in_folder(tmp_path, file, "here"):
        pass
    assert [left.name for left in progress.path.parent.iterdir()] == ["other.json.89"]


def test_two_destinations_have_two_progress_files(tmp_path, file):
    paths = {Checkpoint.in_folder(tmp_path, file, place).path for place in ("a at b:1", "a at b:2")}
    assert len(paths) == 2
    assert {path.parent for path in paths} == {tmp_path / "publish"}


def test_progress_is_kept_where_the_user_keeps_state():
    assert str(state_folder({"XDG_STATE_HOME": "/var/state"})) == "/var/state/callfunnel"
    assert str(state_folder({})).endswith("/.local/state/callfunnel")


def test_a_checksum_tells_where_the_key_ends():
    assert checksum(b"ab", b"c") != checksum(b"a", b"bc")
    assert checksum(b"ab", b"c") == checksum(b"ab", b"c")

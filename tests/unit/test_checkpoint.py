import pytest

from agents.checkpoint import Checkpoint, Done, state_folder
from agents.errors import SettingError

DONE = Done(line=40, acknowledged=38, refused=2)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "day.jsonl"
    path.write_text("{}\n" * 100)
    return path


def checkpoint(tmp_path, file, destination="call-events at 127.0.0.1:9092"):
    return Checkpoint(tmp_path / "state" / "day.json", file, destination)


def test_a_new_file_has_nothing_done(tmp_path, file):
    assert checkpoint(tmp_path, file).load() == Done(0, 0, 0)


def test_the_next_run_of_the_same_file_goes_on_where_the_last_one_stopped(tmp_path, file):
    checkpoint(tmp_path, file).save(Done(line=10))
    checkpoint(tmp_path, file).save(DONE)
    assert checkpoint(tmp_path, file).load() == DONE


def test_a_file_that_changed_begins_again(tmp_path, file):
    checkpoint(tmp_path, file).save(DONE)
    file.write_text("{}\n" * 99 + "[]\n")
    assert checkpoint(tmp_path, file).load() == Done()


def test_another_topic_or_broker_begins_at_the_start(tmp_path, file):
    checkpoint(tmp_path, file).save(DONE)
    assert checkpoint(tmp_path, file, "call-events at 127.0.0.1:9093").load() == Done()


def test_a_finished_file_begins_at_the_start(tmp_path, file):
    checkpoint(tmp_path, file).save(DONE)
    checkpoint(tmp_path, file).remove()
    checkpoint(tmp_path, file).remove()
    assert checkpoint(tmp_path, file).load() == Done()


def test_a_file_that_is_something_else_is_refused_and_left_alone(tmp_path, file):
    wrong = Checkpoint(file, file, "call-events at 127.0.0.1:9092")
    with pytest.raises(SettingError, match="is no progress file"):
        wrong.load()
    assert file.read_text() == "{}\n" * 100


def test_two_destinations_have_two_progress_files(tmp_path, file):
    paths = {Checkpoint.in_folder(tmp_path, file, place).path for place in ("a at b:1", "a at b:2")}
    assert len(paths) == 2
    assert {path.parent for path in paths} == {tmp_path / "publish"}


def test_progress_is_kept_where_the_user_keeps_state():
    assert str(state_folder({"XDG_STATE_HOME": "/var/state"})) == "/var/state/callfunnel"
    assert str(state_folder({})).endswith("/.local/state/callfunnel")

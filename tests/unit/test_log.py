import logging

import orjson
import pytest

from callfunnel.agents import log


@pytest.fixture(autouse=True)
def logging_as_before():
    root = logging.getLogger()
    before = root.handlers[:], root.level, {name: logging.getLogger(name).level for name in log._LIBRARIES}
    yield
    root.handlers[:], level, levels = before
    root.setLevel(level)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_a_json_line_says_when_how_bad_who_and_what(capsys):
    log.set_up("json", "info")
    logging.getLogger("callfunnel.agents.engine.worker").info("ready: %s", [1, 2])
    line = orjson.loads(capsys.readouterr().err)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "info", "logger": "callfunnel.agents.engine.worker", "message": "ready: [1, 2]"}


def test_a_json_line_stays_one_line_when_there_is_a_traceback(capsys):
    log.set_up("json", "info")
    try:
        raise ValueError("of a bug")
    except ValueError:
        logging.getLogger("callfunnel.agents.engine.worker").exception("ended")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert orjson.loads(lines[0])["exception"].splitlines()[-1] == "ValueError: of a bug"


def test_text_is_for_people(capsys):
    log.set_up("text", "warning")
    logging.getLogger("callfunnel.agents.engine.worker").info("too quiet")
    logging.getLogger("callfunnel.agents.engine.worker").warning("slow")
    assert capsys.readouterr().err.endswith(" WARNING slow\n")


@pytest.mark.parametrize("library", ["aiokafka.consumer", "faust.tables", "kafka.conn", "mode.services"])
def test_libraries_never_print_records(capsys, library):
    log.set_up("text", "debug")
    logging.getLogger(library).debug("key=%r value=%r", b"lead", b"+49 170 1234567")
    logging.getLogger(library).info("value=%r", b"+49 170 1234567")
    logging.getLogger(library).warning("the broker is gone")
    assert capsys.readouterr().err.endswith(" WARNING the broker is gone\n")


def test_a_stricter_level_holds_for_libraries_too(capsys):
    log.set_up("text", "error")
    logging.getLogger("aiokafka").warning("the broker is gone")
    assert capsys.readouterr().err == ""


def test_what_a_library_repeats_is_told_once_in_a_while_with_how_often(capsys):
    log.set_up("text", "info")
    library, ours = logging.getLogger("aiokafka"), logging.getLogger("callfunnel.agents.engine.worker")
    for node in range(100):
        library.error("Unable connect to node with id %s", node)
        ours.warning("mine %s", node)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "node" in line] == [lines[0]]
    assert lines[0].endswith("node with id 0")
    assert sum("mine" in line for line in lines) == 100
    (repeats,) = logging.getLogger().handlers[0].filters
    repeats._said = {thing: (at - 5, more) for thing, (at, more) in repeats._said.items()}
    library.error("Unable connect to node with id %s", 7)
    assert capsys.readouterr().err.endswith("node with id 7 (and 99 more times)\n")

"""The command line: fast to start, clear about whose turn it is."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from callfunnel.agents import cli
from callfunnel.streams.log import pseudonym

ROOT = Path(cli.__file__).parents[1]
EVENT = {"event_id": "e-1", "type": "dial", "occurred_at": "2025-03-01T12:00:00Z", "lead_id": "l-1"}


def run(*arguments: str, stdin: str | bytes = b"", **environ: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "callfunnel.agents.cli", *arguments],
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | environ,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def lines(*events: object) -> str:
    return "".join(json.dumps(event) + "\n" for event in events)


def fresh(**fields: object) -> dict[str, object]:
    return EVENT | {"occurred_at": time.time_ns() // 1_000_000} | fields


def test_help_lists_every_command():
    help_text = run("--help").stdout
    commands = {line.split()[0] for line in help_text.partition("Commands:\n")[2].splitlines()}
    assert commands == {path.stem.replace("_", "-") for path in (ROOT / "agents/commands").glob("[!_]*.py")}


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom callfunnel.agents.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({name.split('.')[0] for name in sys.modules} &"
        " {'faust', 'kafka', 'aiokafka', 'rich', 'msgspec', 'prometheus_client', 'aiohttp'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"


def test_every_command_explains_itself_with_an_example():
    for name in cli.callfunnel.list_commands(None):
        help_text = run(name, "--help").stdout
        assert "Example" in help_text, name
        assert f"callfunnel {name}" in help_text, name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "No such command 'nope'"),
        (["validate"], "Missing argument"),
        (["validate", "--nope", "-"], "No such option"),
        (["validate", "no-such-file"], "does not exist"),
    ],
)
def test_a_usage_error_is_exit_64_and_says_what_is_wrong(arguments, message):
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (64, "")
    assert message in done.stderr


def test_version_says_which_one():
    done = run("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("callfunnel ")


@pytest.mark.parametrize("bug", [KeyError("missing"), ModuleNotFoundError("no x", name="callfunnel.x")])
def test_a_bug_is_exit_70_with_its_traceback(monkeypatch, capsys, bug):
    def run(*_, **__):
        raise bug

    monkeypatch.setattr(cli.callfunnel, "main", run)
    with pytest.raises(SystemExit) as left:
        cli.main([])
    assert left.value.code == 70
    assert f"{type(bug).__name__}: {bug}" in capsys.readouterr().err


def test_validate_is_silent_about_good_lines_and_tells_the_time_they_span():
    done = run("validate", "-", stdin=lines(fresh(), fresh(type="won")) + "\n")
    summary, span = done.stdout.splitlines()
    assert (done.returncode, summary, done.stderr) == (0, "2 accepted, 0 refused", "")
    assert re.fullmatch(r"accepted events from \S+\+00:00 to \S+\+00:00, judged for a live floor", span)


def test_validate_tells_each_refused_line_with_its_number_and_the_cure():
    done = run("validate", "-", stdin=lines(fresh(), {**fresh(), "lead_id": 7}, fresh()) + "\n{]\n")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "line 2: wrong_type: `$.lead_id` must be a string of 1 to 64 characters, no control character, "
        "and is an integer",
        "line 5: not_json: the value stops being JSON at character 1 "
        "(Expecting property name enclosed in double quotes)",
        "2 accepted, 2 refused: 1 wrong_type, 1 not_json",
        done.stdout.splitlines()[-2],
        "1 is an exact copy of an event before it: it changes nothing",
    ]


def test_validate_speaks_json_to_machines():
    done = run("validate", "--json", "-", stdin=lines(fresh(type="dail")))
    refused, summary = map(json.loads, done.stdout.splitlines())
    assert (done.returncode, refused["line"], refused["reason"]) == (1, 1, "unknown_type")
    assert refused["detail"].endswith("(did you mean dial?)")
    assert summary == {
        "accepted": 0,
        "refused": {"unknown_type": 1},
        "copies": 0,
        "conflicting": 0,
        "first_conflicting_line": None,
        "clock": "wall",
        "first_event": None,
        "last_event": None,
        "misspelt": [],
        "crowded_leads": [],
        "crowded_leads_complete": True,
    }


def test_validate_judges_time_against_now_and_history_by_its_bound_alone():
    old = lines(EVENT | {"occurred_at": "2009-01-01T00:00:00Z"}, fresh(occurred_at="2099-01-01T00:00:00Z"))
    assert (
        run("validate", "--quiet", "-", stdin=old).stdout
        == "0 accepted, 2 refused: 1 too_old, 1 from_the_future\n"
    )
    for replay in (
        run("validate", "--replay", "-", stdin=old),
        run("validate", "-", stdin=old, **EVENT_CLOCK),
    ):
        refused, *told = replay.stdout.splitlines()
        assert refused.startswith("line 2: from_the_future: `$.occurred_at` is after 20")
        assert told == [
            "1 accepted, 1 refused: 1 from_the_future",
            "accepted events from 2009-01-01T00:00:00+00:00 to 2009-01-01T00:00:00+00:00, judged as history",
        ]
    until = {"CALLFUNNEL_REPLAY_UNTIL": "2099-12-31"}
    assert run("validate", "--replay", "-", stdin=old, **until).stdout.startswith("2 accepted, 0 refused\n")


EVENT_CLOCK = {"CALLFUNNEL_CLOCK": "event"}


def test_validate_takes_the_settings_of_the_worker():
    months_old = lines(EVENT | {"occurred_at": int((time.time() - 90 * 86_400) * 1000)})
    assert run("validate", "-", stdin=months_old).returncode == 0
    retention = {"CALLFUNNEL_EVENT_RETENTION_DAYS": "30"}
    assert "allowed are 30 days" in run("validate", "-", stdin=months_old, **retention).stdout
    zone = run("validate", "-", stdin=lines(EVENT), CALLFUNNEL_TIMEZONE="Asia/Kolkata", **EVENT_CLOCK)
    assert "from 2025-03-01T17:30:00+05:30 to 2025-03-01T17:30:00+05:30" in zone.stdout
    assert run("validate", "-", CALLFUNNEL_CLOCK="sundial").returncode == 64


def test_validate_refuses_seconds_under_every_clock():
    seconds = lines(EVENT | {"occurred_at": 1_741_000_000})
    for done in (run("validate", "-", stdin=seconds), run("validate", "--replay", "-", stdin=seconds)):
        assert done.returncode == 1
        assert "bad_value" in done.stdout
        assert "send milliseconds, not seconds" in done.stdout


def test_validate_names_fields_that_look_like_a_known_one_misspelt():
    wrong = EVENT | {"campain": "spring", "Agent-Id": "a-1", "note": "…"}
    late = {name: value for name, value in EVENT.items() if name != "occurred_at"} | {"occured_at": "x"}
    stdin = lines(*[wrong] * 3, late, EVENT | {"campaign": "spring", "campain": "spring"})
    done = run("validate", "--replay", "-", stdin=stdin)
    assert done.stdout.splitlines()[5:] == [
        "3 lines have a field campain, which is ignored: did you mean campaign?",
        "3 lines have a field Agent-Id, which is ignored: did you mean agent?",
        "1 lines have a field occured_at, which is ignored: did you mean occurred_at?",
    ]
    told = json.loads(run("validate", "--replay", "--json", "--quiet", "-", stdin=stdin).stdout)["misspelt"]
    assert {"field": "campain", "meant": "campaign", "lines": 3} in told
    assert len(told) == 3


def test_validate_names_a_crowded_lead_as_the_worker_would():
    crowd = [EVENT | {"event_id": f"e{n}", "lead_id": "0"} for n in range(1_002)]
    done = run("validate", "--replay", "-", stdin=lines(*crowd, crowd[0], EVENT))
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"line {line}: crowded_lead: `$.lead_id` names a lead that has 1000 events already, the most one "
        "lead may have: is it a placeholder for many leads?"
        for line in (1_001, 1_002)
    ] + [
        "1,002 accepted, 2 refused: 2 crowded_lead",
        "accepted events from 2025-03-01T12:00:00+00:00 to 2025-03-01T12:00:00+00:00, judged as history",
        "1 is an exact copy of an event before it: it changes nothing",
        f"lead #{pseudonym(b'0')} is crowded: 2 events, from line 1,001 on, are more than one lead may have. "
        "Is its id a placeholder for many leads?",
    ]


def test_validate_reads_a_file_of_one_event_over_many_lines():
    done = run("validate", "--replay", str(ROOT / "schemas/examples/accepted/dial.json"))
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "1 accepted, 0 refused")


def test_validate_judges_bytes_that_are_no_text():
    assert (
        run("validate", "--quiet", "-", stdin=b"\xff\n\0\n").stdout
        == "0 accepted, 2 refused: 1 not_utf8, 1 not_json\n"
    )


def test_schema_check_finds_a_stale_document(tmp_path):
    assert run("schema", "--write", str(tmp_path)).returncode == 0
    assert run("schema", "--check", str(tmp_path)).returncode == 0
    (tmp_path / "asyncapi.yaml").write_text("stale")
    done = run("schema", "--check", str(tmp_path))
    assert done.returncode == 1
    assert "asyncapi.yaml differs" in done.stdout


@pytest.mark.parametrize("command", ["validate", "publish"])
@pytest.mark.parametrize(
    ("content", "cure"),
    [
        (gzip.compress(b"{}\n"), "is compressed: gunzip -c {file} | callfunnel {command} -"),
        (b"\xef\xbb\xbf{}\n", "begins with a byte order mark: save it as UTF-8 without one."),
    ],
    ids=["gzip", "BOM"],
)
def test_a_file_that_is_no_lines_of_json_is_refused_as_a_whole(tmp_path, command, content, cure):
    file = tmp_path / "day.jsonl"
    file.write_bytes(content)
    done = run(command, str(file))
    assert (done.returncode, done.stdout) == (64, "")
    assert cure.format(file=file, command=command) in done.stderr


def test_an_option_is_named_as_it_is_given():
    done = run("worker", "--wait", "-1")
    assert done.returncode == 64
    assert "--wait: -1.0 is not allowed" in done.stderr

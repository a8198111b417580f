import json

import pytest
from click.testing import CliRunner

from callfunnel.agents.commands.generate import command
from callfunnel.schemas.codec import Decoder, Limits, Rejected


def generate(*options):
    return CliRunner().invoke(command, options, standalone_mode=False)


def lines(*options):
    return generate(*options).stdout_bytes.splitlines()


def verdicts(*options):
    decoder = Decoder(Limits(clock="event"))
    return [decoder.decode(line, None, -1) for line in lines(*options)]


def test_a_file_depends_on_its_options_alone():
    assert lines("--events", "500", "--seed", "7") == lines("--events", "500", "--seed", "7")
    assert lines("--events", "500", "--seed", "7") != lines("--events", "500", "--seed", "8")
    assert len(lines("--events", "500", "--seed", "7", "--faults")) == 500


def test_every_event_keeps_the_contract():
    assert [
        verdict for verdict in verdicts("--events", "5000", "--faults") if isinstance(verdict, Rejected)
    ] == []


def test_poison_is_what_the_contract_refuses():
    refused = [each for each in verdicts("--events", "3000", "--poison", "0.2") if isinstance(each, Rejected)]
    assert len(refused) / 3000 == pytest.approx(0.2 / 1.2, rel=0.2)
    assert {each.reason for each in refused} == {"unknown_type", "bad_value", "wrong_type", "missing_field"}


def test_a_file_begins_where_it_is_told_with_the_hour_before():
    first = json.loads(lines("--events", "1", "--start", "2026-03-02T10:00:00+01:00")[0])
    assert first["occurred_at"] == 1_772_438_400_000  # 09:00 +01:00, an hour earlier


def test_a_bigger_floor_has_more_agents():
    def agents(*options):
        return {event.get("agent") for event in map(json.loads, lines("--events", "3000", *options))} - {None}

    assert len(agents("--seats", "3")) == 3
    assert len(agents("--rate", "10")) > 300


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "--events N for a file, --live"),
        (("--live", "--start", "2026-01-05T09:00:00Z"), "leave out --start"),
        (("--events", "1", "--seats", "5", "--rate", "5"), "give one of them"),
        (("--events", "1", "--start", "yesterday"), "a time with its offset is needed"),
        (("--events", "1", "--start", "2026-01-05T09:00:00"), "a time with its offset is needed"),
        (("--events", "1", "--start", "1973-03-01T00:00:00Z"), "from March 1973 on"),
    ],
)
def test_options_that_do_not_fit_together_are_explained(options, says):
    assert says in generate(*options).exception.message

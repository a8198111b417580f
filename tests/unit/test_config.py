"""What a setting may be, who wins when it is given twice, and what an error tells (and keeps to itself)."""

import shlex

import msgspec
import pytest

from callfunnel.agents.cli import main
from callfunnel.agents.config import REMOVED, Settings, export, in_force, variable
from callfunnel.agents.errors import SettingError
from callfunnel.schemas.codec import Limits


def refused(environ, **overrides):
    with pytest.raises(SettingError) as error:
        Settings.from_environ(environ, **overrides)
    assert error.value.exit_code == 64
    return error.value.message


def test_without_variables_the_defaults_are_in_force():
    assert Settings.from_environ({"PATH": "/bin", "HOME": "/"}) == Settings()


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("partitions", "32", 32),
        ("hangup_seconds", "7.5", 7.5),
        ("view", "false", False),
        ("wait_seconds", "30", 30.0),
        ("broker", "kafka-1:9092,[::1]:9093", "kafka-1:9092,[::1]:9093"),
        ("timezone", "Europe/Berlin", "Europe/Berlin"),
        ("clock", "event", "event"),
        ("http_port", "9464", 9464),
        ("http_names", "engine,.lan,*", "engine,.lan,*"),
    ],
)
def test_a_variable_is_read_as_the_type_of_its_setting(name, given, value):
    assert getattr(Settings.from_environ({variable(name): given}), name) == value


def test_seconds_with_two_decimals_are_exactly_so_many_milliseconds():
    """In floats 16.06 s are 16,059.999… ms."""
    for hundredths in range(6_000):
        settings = Settings(hangup_seconds=hundredths / 100, late_seconds=hundredths / 100)
        assert (settings.hangup_ms, settings.late_ms) == (hundredths * 10, hundredths * 10)


@pytest.mark.parametrize(
    ("given", "zone", "until_ms"),
    [
        ("2025-03-01T12:00:00Z", "Europe/Berlin", 1_740_830_400_000),
        ("2025-03-01T13:00:00.5+01:00", "UTC", 1_740_830_400_500),
        ("2025-03-01", "UTC", 1_740_873_599_999),
        ("2025-03-01", "Europe/Berlin", 1_740_869_999_999),
        ("2025-03-29", "Europe/Berlin", 1_743_289_199_999),
        ("1970-01-01", "UTC", 86_399_999),
        ("2100-12-31", "UTC", 4_133_980_799_999),
    ],
)
def test_the_bound_of_a_replay_is_a_moment_or_the_end_of_a_day(given, zone, until_ms):
    settings = Settings.from_environ({"CALLFUNNEL_REPLAY_UNTIL": given}, timezone=zone, clock="event")
    assert settings.limits == Limits(clock="event", until_ms=until_ms)


def test_without_a_bound_a_replay_has_that_of_its_tables():
    assert Settings().limits == Limits()
    assert Settings(clock="event", event_retention_days=7).limits == Limits(
        clock="event", retention_ms=7 * 86_400_000
    )


def test_an_empty_variable_counts_as_not_given():
    assert Settings.from_environ({"CALLFUNNEL_PARTITIONS": "", "CALLFUNNEL_INSTANCE": ""}) == Settings()


def test_an_option_wins_over_the_variable_and_an_option_not_given_does_not():
    environ = {"CALLFUNNEL_BROKER": "a:1", "CALLFUNNEL_APP_ID": "east"}
    settings = Settings.from_environ(environ, broker="b:2", app_id=None)
    assert (settings.broker, settings.app_id) == ("b:2", "east")


def test_the_development_profile_asks_for_one_copy_unless_told_otherwise():
    development = Settings.from_environ({"CALLFUNNEL_PROFILE": "development"})
    assert (development.replication_factor, development.min_insync_replicas) == (1, 1)
    by_hand = Settings.from_environ({"CALLFUNNEL_REPLICATION_FACTOR": "2"}, profile="development")
    assert (by_hand.replication_factor, by_hand.min_insync_replicas) == (2, 1)


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings.from_environ({}, profile="development", broker="a:1,b:2", partitions=4, clock="event"),
        Settings.from_environ({}, profile="development", replication_factor=2, timezone="Europe/Berlin"),
        Settings(app_id="east", late_seconds=7.5, allow_plaintext=True, broker="[::1]:9092"),
    ],
)
def test_what_is_exported_for_other_commands_makes_the_same_settings(settings):
    command = shlex.split(export(settings))
    assert command[0] == "export"
    assert Settings.from_environ(dict(word.split("=", 1) for word in command[1:])) == settings


def test_what_is_of_one_process_is_not_exported():
    own = Settings(http_port=1, http_host="0.0.0.0", instance="it's a", view=False, wait_seconds=3.0)
    assert export(own) == "export"


def test_addresses_come_one_by_one():
    assert Settings(broker="a:1,b:2").brokers == ("a:1", "b:2")


def test_a_misspelt_variable_is_refused_with_the_nearest_name():
    assert refused({"CALLFUNNEL_BROKERS": "a:1"}) == (
        "CALLFUNNEL_BROKERS: there is no such setting. Did you mean CALLFUNNEL_BROKER?"
    )


def test_a_setting_that_is_gone_is_told_what_is_in_its_place():
    message = refused({"CALLFUNNEL_DLQ_MAX_RUN": "1000"})
    assert message.startswith("CALLFUNNEL_DLQ_MAX_RUN: this setting is gone: no run of rejected records")
    assert "with CALLFUNNEL_DLQ_STOP=true it stops that partition alone" in message
    assert not {variable(name) for name in REMOVED} & {variable(name) for name in Settings.__struct_fields__}


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("partitions", "0", "a whole number from 1 to 10000"),
        ("partitions", "many", "a whole number from 1 to 10000"),
        ("pane_retention_minute_hours", "4", "a whole number from 5 to 876000"),
        ("pane_retention_hour_days", "1", "a whole number from 2 to 36500"),
        ("hangup_seconds", "-1", "a number from 0 to 31536000"),
        ("hangup_seconds", "nan", "a number from 0 to 31536000"),
        ("wait_seconds", "inf", "a number from 0 to 31536000"),
        ("view", "perhaps", "true or false"),
        ("grafana_url", "javascript:alert(1)", "http:// or https://, and a host"),
        ("grafana_url", "grafana:3000", "http:// or https://, and a host"),
        ("http_port", "65536", "a whole number from 0 to 65535"),
        ("http_names", "engine:9464", "names with commas; .example.org: all below example.org; *: any"),
        ("http_names", "engine, lan", "names with commas; .example.org: all below example.org; *: any"),
        ("http_connections", "0", "a whole number from 1 to 10000"),
        ("partitioner", "fnv", "one of crc32, murmur2, trust"),
        ("sasl_mechanism", "GSSAPI", "one of PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        *(
            ("replay_until", given, "a time with its offset, such as 2026-01-31T18:00:00+01:00, or a date")
            for given in (
                "now",
                "2025-03-01T12:00:00",
                "2025-02-30",
                "9999-12-31",
                "1969-12-31",
                "2101-01-01",
                "21",
            )
        ),
        ("source_topic", "call events", "1 to 200 of a-z A-Z 0-9 . _ -"),
        ("source_topic", "events\n", "1 to 200 of a-z A-Z 0-9 . _ -"),
        ("broker", "localhost", "HOST:PORT[,HOST:PORT…]"),
        ("broker", "kafka://localhost:9092", "HOST:PORT[,HOST:PORT…]"),
        ("broker", "a:1,", "HOST:PORT[,HOST:PORT…]"),
        ("broker", "a:65536", "HOST:PORT[,HOST:PORT…]"),
        ("timezone", "Mars/Olympus", "a name of the IANA time zone database, such as Europe/Berlin"),
        ("timezone", "../../etc/passwd", "a name of the IANA time zone database, such as Europe/Berlin"),
        ("ssl_ca_file", "/no/such/file", "the path of a file that can be read"),
    ],
)
def test_a_bad_value_is_refused_with_the_variable_the_value_and_what_is_allowed(name, given, allowed):
    message = refused({variable(name): given})
    assert message == f"{variable(name)}: {given!r} is not allowed; allowed: {allowed}."


def test_a_bad_option_is_named_as_an_option():
    assert refused({}, http_port=70_000).startswith(
        "--http-port: 70000 is not allowed; allowed: a whole number"
    )


@pytest.mark.parametrize(
    "environ",
    [
        {"CALLFUNNEL_SASL_PASSWORD": "hunter2"},
        {"CALLFUNNEL_SASL_PASSWORD_FILE": "hunter2"},
        {"CALLFUNNEL_SSL_KEY_PASSWORD_FILE": "hunter2"},
        {"CALLFUNNEL_AGENT_LABEL_KEY_FILE": "hunter2"},
        {"CALLFUNNEL_BROKER": "callfunnel:hunter2@kafka:9092"},
    ],
)
def test_an_error_never_shows_what_may_be_a_secret(environ):
    message = refused(environ)
    assert "hunter2" not in message
    assert next(iter(environ)) in message


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"CALLFUNNEL_REPLICATION_FACTOR": "1"},
            "CALLFUNNEL_MIN_INSYNC_REPLICAS: 2 copies must acknowledge, "
            "but CALLFUNNEL_REPLICATION_FACTOR makes only 1: nothing could be written.",
        ),
        (
            {"CALLFUNNEL_DEAD_LETTER_TOPIC": "call-events"},
            "CALLFUNNEL_DEAD_LETTER_TOPIC: is the source topic: every rejected record would come back.",
        ),
        (
            {"CALLFUNNEL_HEARTBEAT_SECONDS": "4"},
            "CALLFUNNEL_HEARTBEAT_SECONDS: 4 is more than a third of CALLFUNNEL_SESSION_TIMEOUT_SECONDS (10)"
            ": one lost heartbeat would cost the partitions.",
        ),
        (
            {"CALLFUNNEL_PANE_RETENTION_MINUTE_HOURS": "73"},
            "CALLFUNNEL_PANE_RETENTION_MINUTE_HOURS: 73 hours are more than the 3 days of "
            "CALLFUNNEL_PANE_RETENTION_HOUR_DAYS: what a minute holds goes into that row when it expires.",
        ),
        (
            {"CALLFUNNEL_AGENT_LABEL": "hashed"},
            "CALLFUNNEL_AGENT_LABEL_KEY_FILE: is needed, because CALLFUNNEL_AGENT_LABEL is hashed.",
        ),
        (
            {"CALLFUNNEL_SECURITY_PROTOCOL": "SASL_PLAINTEXT"},
            "CALLFUNNEL_SECURITY_PROTOCOL: SASL_PLAINTEXT sends the password unencrypted; use SASL_SSL, "
            "or allow it with CALLFUNNEL_ALLOW_PLAINTEXT=true.",
        ),
        (
            {"CALLFUNNEL_SECURITY_PROTOCOL": "SASL_SSL", "CALLFUNNEL_SASL_MECHANISM": "PLAIN"},
            "CALLFUNNEL_SASL_USERNAME: is needed for SASL_SSL.",
        ),
        (
            {"CALLFUNNEL_SASL_USERNAME": "callfunnel"},
            "CALLFUNNEL_SASL_USERNAME: has no effect with PLAINTEXT; use SASL_SSL.",
        ),
        (
            {"CALLFUNNEL_SSL_CA_FILE": __file__},
            "CALLFUNNEL_SSL_CA_FILE: has no effect with PLAINTEXT; use SSL or SASL_SSL.",
        ),
        (
            {"CALLFUNNEL_SECURITY_PROTOCOL": "SSL", "CALLFUNNEL_SSL_CERT_FILE": __file__},
            "CALLFUNNEL_SSL_KEY_FILE: is needed next to CALLFUNNEL_SSL_CERT_FILE.",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(environ, message):
    assert refused(environ) == message


def test_the_variables_kubernetes_adds_for_a_service_are_not_taken_for_settings():
    links = {
        "CALLFUNNEL_SERVICE_HOST": "10.0.0.7",
        "CALLFUNNEL_SERVICE_PORT_METRICS": "9464",
        "CALLFUNNEL_PORT": "tcp://10.0.0.7:9464",
        "CALLFUNNEL_PORT_9464_TCP_ADDR": "10.0.0.7",
        "CALLFUNNEL_VIEW_SERVICE_HOST": "10.0.0.8",
        "CALLFUNNEL_VIEW_PORT_9464_TCP": "tcp://10.0.0.8:9464",
    }
    assert Settings.from_environ(links) == Settings()
    assert "no such setting" in refused({"CALLFUNNEL_PORT": "9464"})


def test_every_setting_tells_its_meaning_what_it_may_be_and_where_it_comes_from():
    shown = {
        setting.name: setting
        for setting in in_force({"CALLFUNNEL_BROKER": "a:1"}, partitions=4, profile="development")
    }
    assert list(shown) == [field.name for field in msgspec.structs.fields(Settings)]
    assert all(setting.meaning and setting.allowed for setting in shown.values())
    assert (shown["broker"].value, shown["broker"].origin) == ("a:1", "CALLFUNNEL_BROKER")
    assert (shown["partitions"].value, shown["partitions"].origin) == (4, "--partitions")
    assert (shown["replication_factor"].value, shown["replication_factor"].origin) == (
        1,
        "profile development",
    )
    assert (shown["clock"].origin, shown["clock"].default) == ("default", "wall")


def test_the_config_command_shows_what_is_in_force_and_never_a_secret(monkeypatch, capsys, tmp_path):
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    for name, value in {
        "security_protocol": "SASL_SSL",
        "sasl_mechanism": "SCRAM-SHA-512",
        "sasl_username": "callfunnel",
        "sasl_password_file": str(secret),
    }.items():
        monkeypatch.setenv(variable(name), value)
    for arguments in (["config"], ["config", "--json"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
        shown = capsys.readouterr().out
        assert "SCRAM-SHA-512" in shown
        assert "hunter2" not in shown
    document = msgspec.json.decode(shown)
    assert document["sasl_mechanism"]["origin"] == "CALLFUNNEL_SASL_MECHANISM"
    assert document["partitions"]["value"] == 8


def test_the_config_command_ends_with_64_on_a_bad_setting_and_still_shows_the_defaults(monkeypatch, capsys):
    monkeypatch.setenv("CALLFUNNEL_PARTITIONS", "none")
    with pytest.raises(SystemExit) as left:
        main(["config"])
    assert left.value.code == 64
    assert "CALLFUNNEL_PARTITIONS: 'none' is not allowed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        main(["config", "--defaults"])
    assert left.value.code == 0
    assert "CALLFUNNEL_PARTITIONS=8  (default)" in capsys.readouterr().out

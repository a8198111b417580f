"""Every setting of callfunnel with its default: one frozen object, read once when a command starts.

The law: nothing else reads the environment, an unknown `CALLFUNNEL_` variable is an error, and a secret is
never a setting: a setting names the file that holds it.
"""

import difflib
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Literal, Self, get_type_hints
from zoneinfo import ZoneInfo

import msgspec
from msgspec import Meta, Struct, inspect

from callfunnel.agents.choice import Choice
from callfunnel.agents.errors import SettingError
from callfunnel.agents.failpoints import POINTS
from callfunnel.schemas.codec import Limits
from callfunnel.streams.windows import DAYS_READ

PREFIX = "CALLFUNNEL_"

PROFILES: dict[str, dict[str, Any]] = {
    "production": {},
    "development": {"replication_factor": 1, "min_insync_replicas": 1},
}
"""What a profile sets, unless it is set by hand."""


REMOVED = {
    "dlq_max_run": "no run of rejected records stops a worker any more. A partition is poisoned when more "
    "than CALLFUNNEL_DLQ_MAX_SHARE of its newest CALLFUNNEL_DLQ_SHARE_WINDOW records are rejected. The "
    "worker names it and goes on; with CALLFUNNEL_DLQ_STOP=true it stops that partition alone",
}
"""Settings of earlier versions, and what is in their place."""


SECRET_FILES = frozenset({"agent_label_key_file", "ssl_key_password_file", "sasl_password_file"})
"""Settings that name a file with a secret: what names no file may be the secret itself and is never shown."""


def _allowed(text: str) -> Meta:
    return Meta(extra={"allowed": text})


def _doc(text: str) -> Meta:
    return Meta(description=text)


Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Days = Annotated[int, Meta(ge=1, le=36_500)]
Seconds = Annotated[float, Meta(ge=0, le=31_536_000)]
PositiveSeconds = Annotated[float, Meta(ge=0.001, le=31_536_000)]
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}\Z"), _allowed("1 to 200 of a-z A-Z 0-9 . _ -")]
File = Annotated[str, Meta(min_length=1), _allowed("the path of a file that can be read")]
Failpoint = Annotated[
    str,
    Meta(pattern=rf"^({'|'.join(POINTS)}):[1-9][0-9]{{0,5}}\Z"),
    _allowed(f"POINT:HIT, with a POINT of {', '.join(POINTS)}"),
]
Text = Annotated[str, Meta(min_length=1), _allowed("text")]
Compression = Literal["none", "snappy", "lz4", "zstd"]


class Settings(Struct, frozen=True, kw_only=True):
    """What is in force. Build it with `from_environ`, which applies the profile and checks each value."""

    # Kafka
    broker: Annotated[
        str, _doc("where Kafka listens; several addresses with commas"), _allowed("HOST:PORT[,HOST:PORT…]")
    ] = "127.0.0.1:9092"
    app_id: Annotated[Name, _doc("names the consumer group and the changelog topics")] = "callfunnel"
    source_topic: Annotated[Name, _doc("the topic the call systems publish to")] = "call-events"
    dead_letter_topic: Annotated[Name, _doc("the topic rejected records go to")] = "call-events.dlq"
    partitions: Annotated[
        int,
        Meta(ge=1, le=10_000),
        _doc("partitions of a topic that is created; an existing source keeps its own count"),
    ] = 8
    replication_factor: Annotated[
        int, Meta(ge=1, le=100), _doc("copies of each partition of a created topic")
    ] = 3
    min_insync_replicas: Annotated[
        int, Meta(ge=1, le=100), _doc("copies that must hold a record before it is acknowledged")
    ] = 2
    profile: Annotated[
        Literal["production", "development"],
        _doc("development: one copy (replication factor and min insync are 1)"),
    ] = "production"
    wait_seconds: Annotated[
        Seconds | None, _doc("how long to wait for a broker that is down; unset: for ever")
    ] = None
    data_dir: Annotated[
        Text | None, _doc("folder of the embedded broker; unset: a temporary one, removed at the end")
    ] = None

    # what the events mean
    partitioner: Annotated[
        Literal["murmur2", "crc32", "trust"],
        _doc(
            "which partition is a lead's home, where its events are sent; trust: wherever they were published"
        ),
    ] = "murmur2"
    clock: Annotated[
        Literal["wall", "event"],
        _doc("wall: a live floor; event: a replay of history, the newest event is now"),
    ] = "wall"
    replay_until: Annotated[
        str | None,
        _doc(
            "with clock = event: an event after this moment is refused; a date: after that day, in the time "
            "zone; unset: after the moment when the tables were begun"
        ),
        _allowed("a time with its offset, such as 2026-01-31T18:00:00+01:00, or a date"),
    ] = None
    timezone: Annotated[
        str,
        _doc("where days begin and end"),
        _allowed("a name of the IANA time zone database, such as Europe/Berlin"),
    ] = "UTC"
    hangup_seconds: Annotated[
        Seconds,
        _doc(
            "a call that ends sooner than this after the decision maker was reached is an immediate hang-up"
        ),
    ] = 15.0
    event_retention_days: Annotated[
        Days,
        _doc(
            "an event that is older when it arrives is too_old, and a lead without an event for so "
            "long is archived (streams/README.md); longer where rows are kept longer"
        ),
    ] = 400
    lead_events: Annotated[
        int,
        Meta(ge=10, le=10_000),
        _doc("the most events one lead may have: an id with more is a placeholder for many leads"),
    ] = 1_000
    late_seconds: Annotated[
        Seconds, _doc("an event that arrives this long after it happened counts as late")
    ] = 600.0
    pane_retention_minute_hours: Annotated[
        int,
        Meta(ge=5, le=876_000),
        _doc(
            "hours that minute rows are kept: ages read 4 of them, events may be 1 ahead of the clock; "
            "those of agents and places for 2 at most"
        ),
    ] = 6
    pane_retention_hour_days: Annotated[
        int,
        Meta(ge=2, le=36_500),
        _doc("days that hour rows are kept: what was seen in 2 of them is shown"),
    ] = 3
    pane_retention_day_days: Annotated[
        int, Meta(ge=DAYS_READ, le=36_500), _doc("days that day rows are kept")
    ] = 400

    # the worker
    instance: Annotated[
        Text | None,
        _doc("static name of this worker in the group: restarted under it, it takes its partitions back"),
    ] = None
    session_timeout_seconds: Annotated[
        PositiveSeconds, _doc("a worker silent for this long loses its partitions")
    ] = 10.0
    heartbeat_seconds: Annotated[
        PositiveSeconds, _doc("how often a worker says that it lives; at most a third of the session timeout")
    ] = 1.0
    commit_interval_seconds: Annotated[
        PositiveSeconds,
        _doc("how often the group's offset is committed; lag is read from it, the tables never are"),
    ] = 1.0
    batch_events: Annotated[Count, _doc("most events folded in one transaction")] = 20_000
    batch_spacing_seconds: Annotated[
        float,
        Meta(ge=0, le=60),
        _doc(
            "how long after the start of a transaction the next small one of the partition begins at the "
            "earliest: more of it makes a small floor cheaper, and its numbers older"
        ),
    ] = 0.5
    changelog_compression: Annotated[
        Compression,
        _doc(
            "how a worker compresses what it writes to its changelogs; Kafka knows zstd since 2.1, and every "
            "worker and view reads all of them"
        ),
    ] = "zstd"
    tables: Annotated[
        Choice,
        _doc(
            "what folds events: the core (make core), the definition, slowly; auto: the core if there is one"
        ),
    ] = "auto"
    transaction_timeout_seconds: Annotated[
        PositiveSeconds, _doc("the broker aborts a transaction that is open for longer")
    ] = 15.0
    stall_seconds: Annotated[
        PositiveSeconds, _doc("a worker that has lag and makes no progress for this long ends itself")
    ] = 60.0
    stale_seconds: Annotated[
        float,
        Meta(ge=3, le=86_400),
        _doc(
            "a process that no broker has answered for this long is not ready, and numbers that are complete "
            "up to a moment this long ago are behind"
        ),
    ] = 15.0
    dlq_max_share: Annotated[
        float,
        Meta(ge=0, le=1),
        _doc("a partition is poisoned when more than this share of its newest records is rejected"),
    ] = 0.5
    dlq_share_window: Annotated[
        Count, _doc("the newest records of a partition over which dlq_max_share is taken")
    ] = 1_000
    dlq_stop: Annotated[
        bool, _doc("stop a poisoned partition, and it alone, until `callfunnel source resume` lets it go on")
    ] = False

    # what is served
    view: Annotated[bool, _doc("serve the business numbers from this worker too")] = True
    view_refresh_seconds: Annotated[PositiveSeconds, _doc("least time between two snapshots of the view")] = (
        0.2
    )
    http_host: Annotated[Text, _doc("address the HTTP pages listen on; 0.0.0.0: all of them")] = "127.0.0.1"
    http_port: Annotated[
        Annotated[int, Meta(ge=0, le=65_535)] | None,
        _doc("port of the HTTP pages; 0: any free one; unset: 9464, or the next one that is free"),
    ] = None
    http_names: Annotated[
        str,
        _doc(
            "host names that the pages answer to, besides IP addresses, localhost and, beyond loopback, "
            "this machine's own name"
        ),
        _allowed("names with commas; .example.org: all below example.org; *: any"),
    ] = ""
    http_connections: Annotated[
        int,
        Meta(ge=1, le=10_000),
        _doc(
            "most connections to the HTTP pages, and never more than a quarter of ulimit -n: each one beyond "
            "closes the one that has waited longest for its client"
        ),
    ] = 100
    http_idle_seconds: Annotated[
        PositiveSeconds,
        _doc(
            "a connection to the HTTP pages that brings no request and takes no answer for so long is closed"
        ),
    ] = 75.0
    grafana_url: Annotated[
        str | None,
        _doc("where Grafana is, for the page's links to its dashboards; unset: no links"),
        _allowed("http:// or https://, and a host"),
    ] = None
    agent_label: Annotated[
        Literal["id", "hashed", "off"],
        _doc("what stands for an agent in the metrics; hashed needs a key file"),
    ] = "id"
    agent_label_key_file: Annotated[File | None, _doc("file with the key of hashed agent labels")] = None
    series_limit: Annotated[
        Count, _doc("most series of one metric family; what is beyond goes to __other__")
    ] = 10_000
    failpoint: Annotated[
        Failpoint | None, _doc("for tests of faults: where the worker dies, as by kill -9")
    ] = None
    log_format: Annotated[Literal["text", "json"], _doc("how log lines are written")] = "text"
    log_level: Annotated[Literal["debug", "info", "warning", "error"], _doc("the least that is logged")] = (
        "info"
    )

    # security
    security_protocol: Annotated[
        Literal["PLAINTEXT", "SSL", "SASL_SSL", "SASL_PLAINTEXT"], _doc("how to talk to the broker")
    ] = "PLAINTEXT"
    ssl_ca_file: Annotated[
        File | None, _doc("PEM file of who may sign the broker's certificate; unset: the system's")
    ] = None
    ssl_cert_file: Annotated[File | None, _doc("PEM file of the client's certificate")] = None
    ssl_key_file: Annotated[File | None, _doc("PEM file of the client's key")] = None
    ssl_key_password_file: Annotated[File | None, _doc("file with the password of that key")] = None
    sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] | None, _doc("how the client proves who it is")
    ] = None
    sasl_username: Annotated[Text | None, _doc("the client's name")] = None
    sasl_password_file: Annotated[File | None, _doc("file with the client's password")] = None
    allow_plaintext: Annotated[bool, _doc("let SASL_PLAINTEXT send the password unencrypted")] = False

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], **overrides: Any) -> Self:
        """The settings of `environ`, over them the `overrides` that are not None (a command's options).

        Raises SettingError, which names the variable or the option, what was given and what is allowed.
        """
        return cls(**{name: value for name, (value, _) in _gather(environ, overrides).items()})

    def __post_init__(self) -> None:
        for broken, name, why in self._rules():
            if broken:
                raise SettingError(f"{variable(name)}: {why}.")

    @property
    def brokers(self) -> tuple[str, ...]:
        """The addresses of `broker`, one by one."""
        return tuple(self.broker.split(","))

    @property
    def hangup_ms(self) -> int:
        """`hangup_seconds` as the fold counts: seconds in decimals are whole milliseconds, never one less."""
        return round(self.hangup_seconds * 1000)

    @property
    def late_ms(self) -> int:
        """`late_seconds` in milliseconds."""
        return round(self.late_seconds * 1000)

    @property
    def limits(self) -> Limits:
        """What a record may be, as far as the settings say: tables know a replay's bound themselves."""
        zone = ZoneInfo(self.timezone)
        return Limits(
            clock=self.clock,
            retention_ms=self.event_retention_days * 86_400_000,
            until_ms=None if self.replay_until is None else _until_ms(self.replay_until, zone),
        )

    def _rules(self) -> tuple[tuple[object, str, str], ...]:
        tls = self.security_protocol.endswith("SSL")
        sasl = self.security_protocol.startswith("SASL")
        return (
            (
                self.min_insync_replicas > self.replication_factor,
                "min_insync_replicas",
                f"{self.min_insync_replicas} copies must acknowledge, but CALLFUNNEL_REPLICATION_FACTOR "
                f"makes only {self.replication_factor}: nothing could be written",
            ),
            (
                self.dead_letter_topic == self.source_topic,
                "dead_letter_topic",
                "is the source topic: every rejected record would come back",
            ),
            (
                self.heartbeat_seconds > self.session_timeout_seconds / 3,
                "heartbeat_seconds",
                f"{self.heartbeat_seconds:g} is more than a third of CALLFUNNEL_SESSION_TIMEOUT_SECONDS "
                f"({self.session_timeout_seconds:g}): one lost heartbeat would cost the partitions",
            ),
            *(
                (
                    self.pane_retention_minute_hours > 24 * getattr(self, name),
                    "pane_retention_minute_hours",
                    f"{self.pane_retention_minute_hours} hours are more than the {getattr(self, name)} days "
                    f"of {variable(name)}: what a minute holds goes into that row when it expires",
                )
                for name in ("pane_retention_hour_days", "pane_retention_day_days")
            ),
            (
                self.agent_label == "hashed" and not self.agent_label_key_file,
                "agent_label_key_file",
                "is needed, because CALLFUNNEL_AGENT_LABEL is hashed",
            ),
            (
                self.security_protocol == "SASL_PLAINTEXT" and not self.allow_plaintext,
                "security_protocol",
                "SASL_PLAINTEXT sends the password unencrypted; use SASL_SSL, or allow it with "
                "CALLFUNNEL_ALLOW_PLAINTEXT=true",
            ),
            *(
                (sasl and not getattr(self, name), name, f"is needed for {self.security_protocol}")
                for name in ("sasl_mechanism", "sasl_username", "sasl_password_file")
            ),
            *(
                (
                    not sasl and getattr(self, name),
                    name,
                    f"has no effect with {self.security_protocol}; use SASL_SSL",
                )
                for name in ("sasl_mechanism", "sasl_username", "sasl_password_file")
            ),
            *(
                (
                    not tls and getattr(self, name),
                    name,
                    f"has no effect with {self.security_protocol}; use SSL or SASL_SSL",
                )
                for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file", "ssl_key_password_file")
            ),
            (
                self.ssl_cert_file and not self.ssl_key_file,
                "ssl_key_file",
                "is needed next to CALLFUNNEL_SSL_CERT_FILE",
            ),
            (
                self.ssl_key_file and not self.ssl_cert_file,
                "ssl_cert_file",
                "is needed next to CALLFUNNEL_SSL_KEY_FILE",
            ),
        )


class Setting(Struct, frozen=True):
    """One setting, as `callfunnel config` shows it; `origin`: a variable, an option, a profile or default."""

    name: str
    variable: str
    value: Any
    origin: str
    default: Any
    allowed: str
    meaning: str


def in_force(environ: Mapping[str, str], **overrides: Any) -> tuple[Setting, ...]:
    """Every setting with where its value comes from. Raises SettingError as `Settings.from_environ` does."""
    Settings.from_environ(environ, **overrides)
    defaults = Settings()
    kinds = {name: inspect.type_info(annotation) for name, annotation in _annotations().items()}
    return tuple(
        Setting(
            name=name,
            variable=variable(name),
            value=value,
            origin=origin,
            default=getattr(defaults, name),
            allowed=_what_is_allowed(kinds[name]),
            meaning=_meaning(kinds[name]),
        )
        for name, (value, origin) in _gather(environ, overrides).items()
    )


def variable(name: str) -> str:
    """The environment variable of a setting."""
    return PREFIX + name.upper()


_OF_ONE_PROCESS = frozenset(
    ("wait_seconds", "data_dir", "instance", "tables", "view", "http_host", "http_port", "failpoint")
)


def export(settings: Settings) -> str:
    """The shell's command after which other commands work on the same topics and tables."""
    default = Settings.from_environ({}, profile=settings.profile)
    given: dict[str, Any] = {"profile": settings.profile} if settings.profile != Settings().profile else {}
    for name in Settings.__struct_fields__:
        if name not in _OF_ONE_PROCESS and (value := getattr(settings, name)) != getattr(default, name):
            given[name] = value
    return " ".join(["export", *(f"{variable(name)}={shlex.quote(str(given[name]))}" for name in given)])


def _gather(environ: Mapping[str, str], overrides: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    fields = msgspec.structs.fields(Settings)
    _refuse_unknown(environ, {variable(field.name) for field in fields})
    gathered: dict[str, tuple[Any, str]] = {field.name: (field.default, "default") for field in fields}
    if unknown := set(overrides) - set(gathered):
        raise TypeError(f"no such setting: {', '.join(sorted(unknown))}")
    given = {
        name: (environ[variable(name)], variable(name)) for name in gathered if environ.get(variable(name))
    }
    given |= {
        name: (value, "--" + name.removesuffix("_seconds").replace("_", "-"))
        for name, value in overrides.items()
        if value is not None
    }
    parsed = {name: (_parse(name, value, origin), origin) for name, (value, origin) in given.items()}
    profile = parsed.get("profile", gathered["profile"])[0]
    gathered |= {name: (value, f"profile {profile}") for name, value in PROFILES[profile].items()}
    return gathered | parsed


def _parse(name: str, given: Any, origin: str) -> Any:
    annotation = _annotations()[name]
    try:
        value = msgspec.convert(given, annotation, strict=False)
        _check(name, value)
    except (ValueError, KeyError, OSError):
        may_be_secret = name in SECRET_FILES or "@" in str(given)
        shown = "what was given (not shown, it may be a secret)" if may_be_secret else repr(given)
        allowed = _what_is_allowed(inspect.type_info(annotation))
        raise SettingError(f"{origin}: {shown} is not allowed; allowed: {allowed}.") from None
    return value


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)
_NAMES = r"(\*|\.?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*)"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")


def _check(name: str, value: Any) -> None:
    """What a type cannot say. Raises ValueError, KeyError or OSError."""
    if value is None:
        return
    if name == "broker":
        for address in value.split(","):
            match = _ADDRESS.fullmatch(address)
            if not match or not 1 <= int(match[2]) <= 65_535:
                raise ValueError(address)
    elif name == "timezone":
        ZoneInfo(value)
    elif name == "replay_until":
        _until_ms(value, ZoneInfo("UTC"))
    elif name == "http_names":
        if not re.fullmatch(rf"({_NAMES}(,{_NAMES})*)?", value):
            raise ValueError(value)
    elif name == "grafana_url":
        if not re.fullmatch(r"https?://[^/\s@]+(/\S*)?", value):
            raise ValueError(value)
    elif name.endswith("_file"):
        with open(value, "rb"):
            pass


def _until_ms(text: str, zone: ZoneInfo) -> int:
    """The moment in Unix milliseconds; of a date, the last of that day. Raises ValueError."""
    if not "1970" <= text[:4] <= "2100":
        raise ValueError(text)
    try:
        following = msgspec.convert(text, date) + timedelta(days=1)
        at = datetime(following.year, following.month, following.day, tzinfo=zone)
        return (at - _EPOCH) // _MILLISECOND - 1
    except msgspec.ValidationError:
        at = msgspec.convert(text, datetime)
    if at.tzinfo is None:
        raise ValueError(text)
    return (at - _EPOCH) // _MILLISECOND


_SERVICE_LINK = re.compile(
    rf"{PREFIX}(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)"
)


def _is_service_link(name: str, value: str) -> bool:
    """Kubernetes gives every pod such variables; a service named callfunnel must not stop the workers."""
    is_link_to_port = name.endswith("_PORT") and value.startswith(("tcp://", "udp://", "sctp://"))
    return is_link_to_port or _SERVICE_LINK.fullmatch(name) is not None


def _refuse_unknown(environ: Mapping[str, str], known: set[str]) -> None:
    for name in sorted(environ):
        if not name.startswith(PREFIX) or name in known or _is_service_link(name, environ[name]):
            continue
        mine = name.removeprefix(PREFIX)
        if mine.lower() in REMOVED:
            raise SettingError(f"{name}: this setting is gone: {REMOVED[mine.lower()]}. Remove it.")
        near = difflib.get_close_matches(mine, [one.removeprefix(PREFIX) for one in known], n=1, cutoff=0.7)
        hint = f"Did you mean {PREFIX}{near[0]}?" if near else "`callfunnel config` lists all there are."
        raise SettingError(f"{name}: there is no such setting. {hint}")


def _annotations() -> dict[str, Any]:
    return get_type_hints(Settings, include_extras=True)


def _meaning(kind: inspect.Type) -> str:
    assert isinstance(kind, inspect.Metadata)
    assert kind.extra_json_schema is not None
    return str(kind.extra_json_schema["description"])


def _what_is_allowed(kind: inspect.Type) -> str:
    match kind:
        case inspect.Metadata(type=inner, extra=extra):
            return str(extra["allowed"]) if extra and "allowed" in extra else _what_is_allowed(inner)
        case inspect.UnionType(types=types):
            return next(_what_is_allowed(member) for member in types if member != inspect.NoneType())
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(map(str, values))
        case inspect.IntType(ge=least, le=most):
            return f"a whole number from {least} to {most}"
        case inspect.FloatType(ge=least, le=most):
            return f"a number from {least:g} to {most}"
        case inspect.BoolType():
            return "true or false"
    raise TypeError(f"a setting needs a kind that can be described, not {kind}")

"""compose.yaml and the Dockerfile, as far as they can be judged without a Docker engine.

What they name exists, what they connect fits together, and nothing in them is open to the network. Whether
the images start, only Docker can tell.
"""

import asyncio
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import msgspec
import pytest
import yaml

from callfunnel.agents.cli import callfunnel
from callfunnel.agents.config import PREFIX, Settings
from callfunnel.agents.view.hosts import Hosts
from deploy.kafka import kraft

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
PROMETHEUS = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
ENGINES = {name: service for name, service in SERVICES.items() if "build" in service}

OWN_PORTS = {"prometheus": 9090, "alertmanager": 9093, "grafana": 3000}
"""Where these programs listen inside their images, when nothing says otherwise."""

Duration = Annotated[str, msgspec.Meta(pattern=r"^\d+(ms|s|m|h)$")]


class Part(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """Of the Compose specification, what is used here; a misspelt key would be ignored or refused."""


class Build(Part):
    context: str
    dockerfile: str


class HealthCheck(Part):
    test: list[str] = []
    interval: Duration = "30s"
    timeout: Duration = "30s"
    retries: int = 3
    disable: bool = False


class Mounted(Part):
    source: str
    target: str


class Condition(Part):
    condition: Literal["service_healthy", "service_completed_successfully"]


class Service(Part):
    image: str
    build: Build | None = None
    command: list[str] = []
    entrypoint: list[str] = []
    environment: dict[str, str] = {}
    ports: list[str] = []
    volumes: list[str] = []
    configs: list[Mounted] = []
    healthcheck: HealthCheck | None = None
    depends_on: dict[str, Condition] = {}
    restart: Literal["no", "always", "on-failure", "unless-stopped"] = "no"
    profiles: list[str] = []
    read_only: bool = False
    tmpfs: list[str] = []
    cap_drop: list[str] = []
    security_opt: list[str] = []
    init: bool = False
    stop_grace_period: Duration = "10s"


class Content(Part):
    content: str


class Stack(Part):
    name: str
    services: dict[str, Service]
    configs: dict[str, Content]
    volumes: dict[str, dict[str, str]]


def settings_of(service: dict[str, Any]) -> dict[str, str]:
    inside = dict(re.findall(rf"\b({PREFIX}\w+)=(\S+)", DOCKERFILE)) if "build" in service else {}
    return inside | service.get("environment", {})


def port_of(service: str) -> int:
    """The port that a service has on the machine."""
    (published,) = SERVICES[service]["ports"]
    return int(published.split(":")[1])


def mounts(service: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [tuple((one + ":rw").split(":")[:3]) for one in service.get("volumes", [])]  # type: ignore[misc]


def test_every_key_and_every_value_is_one_of_the_specification():
    msgspec.convert({key: value for key, value in COMPOSE.items() if not key.startswith("x-")}, Stack)


@pytest.mark.parametrize("name", ENGINES)
def test_the_image_is_built_from_what_is_here(name):
    build = ENGINES[name]["build"]
    context = (DEPLOY / build["context"]).resolve()
    assert context == ROOT
    assert context / build["dockerfile"] == DEPLOY / "Dockerfile"


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_by_its_version(name):
    assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])


def test_the_versions_are_those_of_the_rest_of_the_repository():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert SERVICES["kafka"]["image"] == f"apache/kafka:{kraft.version()}"
    assert {service["image"] for service in ENGINES.values()} == {f"callfunnel:{version}"}
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    found = re.fullmatch(r"python:(3\.11\.\d+)-bookworm", bases[0])
    assert bases[1:] == [f"python:{found[1]}-slim-bookworm"]


@pytest.mark.parametrize("name", SERVICES)
def test_whatever_is_published_is_published_on_loopback_alone(name):
    for published in SERVICES[name].get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", published)


def test_no_two_services_want_one_port():
    ports = [
        published.split(":")[1] for service in SERVICES.values() for published in service.get("ports", [])
    ]
    assert sorted(ports) == sorted(set(ports))


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_exists_and_files_of_the_repository_are_mounted_read_only(name):
    for source, target, mode in mounts(SERVICES[name]):
        assert target.startswith("/")
        if source.startswith("."):
            assert (DEPLOY / source).exists(), source
            assert mode == "ro"
        else:
            assert source in COMPOSE["volumes"]
    for config in SERVICES[name].get("configs", []):
        assert config["source"] in COMPOSE["configs"]


@pytest.mark.parametrize("name", OWN_PORTS)
def test_a_service_is_published_and_looked_after_where_it_listens(name):
    (published,) = SERVICES[name]["ports"]
    assert int(published.split(":")[2]) == OWN_PORTS[name]
    *command, url = SERVICES[name]["healthcheck"]["test"]
    assert command == ["CMD", "wget", "-q", "-O", "-"]
    assert url.startswith(f"http://localhost:{OWN_PORTS[name]}/")
    assert not any("web.listen-address" in argument for argument in SERVICES[name].get("command", []))


def waited_for(name: str) -> set[str]:
    direct = set(SERVICES[name].get("depends_on", {}))
    return direct.union(*map(waited_for, direct))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_waits_for_those_it_is_told_to_talk_to(name):
    told = " ".join(SERVICES[name].get("environment", {}).values())
    named = {other for other in SERVICES if re.search(rf"(?<![\w.]){other}:\d", told)}
    assert named - {name} <= waited_for(name)


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_happen(name):
    for other, how in SERVICES[name].get("depends_on", {}).items():
        if how["condition"] == "service_healthy":
            assert "test" in SERVICES[other]["healthcheck"]
        else:
            assert how["condition"] == "service_completed_successfully"
            assert "restart" not in SERVICES[other]


@pytest.mark.parametrize("name", ENGINES)
def test_the_engine_is_given_settings_that_exist_and_commands_that_exist(name):
    service = ENGINES[name]
    given = settings_of(service)
    settings = Settings.from_environ(given)
    assert settings.profile == "development"
    typed = re.findall(r"callfunnel ([^|]+)", " ".join(service.get("entrypoint", [])))
    for words in map(shlex.split, typed or [shlex.join(service["command"])]):
        command: click.Command | None = callfunnel
        while isinstance(command, click.Group):
            command = command.get_command(click.Context(command), words.pop(0))
        assert command is not None
        command.make_context(command.name, words)  # parses the options, and does nothing


@pytest.mark.parametrize("name", ENGINES)
def test_the_engine_has_no_rights_that_it_does_not_need(name):
    service = ENGINES[name]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "PYTHONDONTWRITEBYTECODE=1" in DOCKERFILE


def test_everything_that_stays_up_has_a_health_check():
    for name, service in SERVICES.items():
        if "restart" in service:
            assert "healthcheck" in service or ("build" in service and "HEALTHCHECK" in DOCKERFILE), name


def test_kafka_is_where_the_engine_and_this_machine_look_for_it():
    environment = SERVICES["kafka"]["environment"]
    advertised = dict(one.split("://") for one in environment["KAFKA_ADVERTISED_LISTENERS"].split(","))
    listening = dict(one.split("://") for one in environment["KAFKA_LISTENERS"].split(","))
    assert settings_of(ENGINES["engine"])["CALLFUNNEL_BROKER"] == advertised["INSIDE"]
    (published,) = SERVICES["kafka"]["ports"]
    assert advertised["OUTSIDE"] == f"localhost:{port_of('kafka')}"
    assert listening["OUTSIDE"] == f":{published.split(':')[2]}"
    assert environment["KAFKA_CONTROLLER_QUORUM_VOTERS"].endswith(listening["CONTROLLER"])
    protocols = dict(one.split(":") for one in environment["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert protocols.keys() == listening.keys()
    assert SERVICES["kafka"]["healthcheck"]["test"][-1] == f"localhost{listening['INSIDE']}"


def test_kafka_is_set_up_as_it_is_without_docker():
    """Each property that both set has the same value, but where one node is one of many there."""
    template = (DEPLOY / "kafka/server.properties").read_text()
    without = dict(line.split("=", 1) for line in template.splitlines() if line and line[0] != "#")
    environment = SERVICES["kafka"]["environment"]
    for name, value in without.items():
        given = environment.get("KAFKA_" + name.upper().replace(".", "_"))
        if given is not None and "$" not in value and "listener" not in name:
            assert given == value, name


def test_prometheus_scrapes_and_alerts_the_services_of_the_stack():
    files = {
        file
        for place in (*PROMETHEUS["scrape_configs"], *PROMETHEUS["alerting"]["alertmanagers"])
        for one in place["file_sd_configs"]
        for file in one["files"]
    }
    found = {}
    for config in SERVICES["prometheus"]["configs"]:
        (entry,) = yaml.safe_load(COMPOSE["configs"][config["source"]]["content"])
        found[config["target"].removeprefix("/etc/prometheus/")] = entry["targets"]
    assert found.keys() == files
    settings = Settings.from_environ(settings_of(ENGINES["engine"]))
    assert found["targets/callfunnel.yml"] == [f"engine:{settings.http_port}"]
    assert settings.http_host == "0.0.0.0"
    hosts = Hosts(settings.http_names, settings.http_host, is_loopback=False)
    assert [asyncio.run(hosts.why_not(target)) for target in found["targets/callfunnel.yml"]] == [None]
    assert SERVICES["engine"]["ports"] == [f"127.0.0.1:{settings.http_port}:{settings.http_port}"]
    assert f"EXPOSE {settings.http_port}\n" in DOCKERFILE
    [options, url] = re.findall(r"^HEALTHCHECK (.+?) \\\n +CMD \[.+'(http\S+)'", DOCKERFILE, re.MULTILINE)[0]
    assert url == f"http://127.0.0.1:{settings.http_port}/-/healthy"
    known = r"--(interval|timeout|start-period)=\d+s|--retries=\d+"
    assert all(re.fullmatch(known, option) for option in options.split())
    assert found["targets/alertmanager.yml"] == ["alertmanager:9093"]


def test_links_in_alerts_and_on_the_page_lead_to_the_stack():
    labels = PROMETHEUS["global"]["external_labels"]
    assert labels["grafana"] == f"http://localhost:{port_of('grafana')}"
    assert labels["runbooks"] == f"http://localhost:{port_of('prometheus')}/user"
    assert "--web.user-assets=/etc/prometheus/runbooks" in SERVICES["prometheus"]["command"]
    assert ("./runbooks", "/etc/prometheus/runbooks", "ro") in mounts(SERVICES["prometheus"])
    assert settings_of(ENGINES["engine"])["CALLFUNNEL_GRAFANA_URL"] == labels["grafana"]


def test_what_the_commands_read_is_mounted_where_they_read_it():
    for name in ("prometheus", "alertmanager"):
        targets = {target for _, target, _ in mounts(SERVICES[name])}
        (config,) = (one for one in SERVICES[name]["command"] if one.startswith("--config.file="))
        assert config.removeprefix("--config.file=") in targets
        (storage,) = (
            one for one in SERVICES[name]["command"] if one.startswith("--storage") and ".path=" in one
        )
        assert storage.partition("=")[2] in targets
    rules = {"/etc/prometheus/" + file.rpartition("/")[0] for file in PROMETHEUS["rule_files"]}
    assert rules <= {target for _, target, _ in mounts(SERVICES["prometheus"])}


def test_grafana_finds_its_dashboards_and_its_prometheus():
    grafana = SERVICES["grafana"]
    placed = {target: DEPLOY / source for source, target, _ in mounts(grafana) if source.startswith(".")}
    provisioning = placed["/etc/grafana/provisioning"]
    provider = yaml.safe_load((provisioning / "dashboards/callfunnel.yaml").read_text())["providers"][0]
    dashboards = placed[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert json.loads((dashboards / home.name).read_text())["uid"] == "callfunnel-overview"
    source = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"][0]
    variable = source["url"].removeprefix("$")
    assert grafana["environment"][variable] == "http://prometheus:9090"


def test_there_is_no_secret_in_it():
    for service in SERVICES.values():
        for name in service.get("environment", {}):
            assert not re.search(r"PASSWORD|SECRET|TOKEN|API_KEY", name)
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


def test_the_image_runs_as_nobody_in_particular_and_holds_what_is_locked():
    stages = DOCKERFILE.split("FROM ")[1:]
    assert re.search(r"^USER (\d+):\1$", stages[1], re.MULTILINE)
    assert "pip install" not in stages[1]
    copied = re.findall(r"^COPY (.+)$", stages[1], re.MULTILINE)
    assert copied == ["--from=build /opt/callfunnel /opt/callfunnel"]
    commands = stages[0].replace("\\\n", "")
    into_it = re.findall(r"/opt/callfunnel/bin/pip install (.+)", commands)
    assert [options.split()[-1] for options in into_it] == [
        "deploy/requirements-engine.txt",
        "/opt/wheels/callfunnel-*.whl",
    ]
    assert "--require-hashes" in into_it[0]
    assert "--no-index" in into_it[1]


COPIED = [line.split() for line in re.findall(r"^COPY (?!--)(.+)$", DOCKERFILE, re.MULTILINE)]


def test_what_the_image_copies_exists_and_is_let_through():
    let_through = {
        line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"
    }
    copied = {name for *names, _ in COPIED for name in names}
    assert copied == let_through
    for name in copied:
        assert (ROOT / name).exists()


@pytest.mark.skipif(
    shutil.which("cargo") is None, reason="no Rust compiler (rustup, or Debian: apt-get install cargo-web)"
)
@pytest.mark.timeout(900)
def test_the_image_folds_by_the_core(tmp_path):
    """Its own commands on what it copies: the wheel is made as there, and its tables can be used."""
    for *names, target in COPIED:
        for name in names:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__", "*.so")
                shutil.copytree(ROOT / name, tmp_path / "src" / target, ignore=ignored)
            else:
                (tmp_path / "src" / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, tmp_path / "src" / target)
    commands = re.findall(r"^RUN (.+)$", DOCKERFILE.replace("\\\n", ""), re.MULTILINE)
    (wheel,) = (command for command in commands if "pip wheel" in command)
    (check,) = (command for command in commands if "tables_for('core')" in command)
    here = wheel.replace("/opt/build/bin/pip", f"{sys.executable} -m pip")
    here = here.replace("/opt/wheels", str(tmp_path))
    subprocess.run(here, shell=True, cwd=tmp_path / "src", check=True)
    (made,) = tmp_path.glob("callfunnel-*.whl")
    shutil.unpack_archive(made, tmp_path / "installed", "zip")
    here = check.replace("/opt/callfunnel/bin/python -Ic", f"{sys.executable} -c")
    subprocess.run(here, shell=True, cwd=tmp_path / "installed", check=True)

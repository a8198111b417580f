"""A Kafka that asks who one is: what is told where TLS, credentials or rights are not as they must be."""

import subprocess
import time
from contextlib import ExitStack

import pytest
from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from conftest import Cluster, kraft
from msgspec.structs import asdict, replace

from callfunnel.agents.config import Settings
from callfunnel.agents.demo.broker import free_port
from callfunnel.agents.errors import BrokerUnavailable
from callfunnel.agents.kafka import diagnosis, topics
from callfunnel.agents.kafka.connection import aiokafka_options
from callfunnel.agents.kafka.rights import needed
from callfunnel.agents.view.snapshot import View
from integration.workers import PARTITIONS, Workers, calls, publish
from patience import Deadline

HOST = "127.0.0.1"
USER, PASSWORD = "callfunnel", "right"


class Secured:
    """One broker: everybody may do everything on its plain listener, the other listeners ask who one is."""

    def __init__(self, folder):
        self.folder = folder
        self.ports = {name: free_port() for name in ("PLAIN", "TLS", "SASL", "BOTH")}
        for command in (
            "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem",
            "req -newkey rsa:2048 -nodes -subj /CN=broker -keyout broker.key -out broker.csr",
        ):
            self._openssl(command)
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1\n")
        self._openssl(
            "x509 -req -in broker.csr -CA ca.pem -CAkey ca.key -days 2 -extfile names -out broker.pem"
        )
        (folder / "keystore.pem").write_text(
            (folder / "broker.key").read_text() + (folder / "broker.pem").read_text()
        )
        for name, password in (("right", PASSWORD), ("wrong", "wrong")):
            (folder / name).write_text(password)
        listeners = ",".join(
            f"{name}://{HOST}:{port}" for name, port in self.ports.items() if name != "PLAIN"
        )
        plain = (
            "org.apache.kafka.common.security.plain.PlainLoginModule required "
            f'user_{USER}="{PASSWORD}" user_nobody="{PASSWORD}";'
        )
        self.cluster = kraft.Cluster(
            port=self.ports["PLAIN"],
            properties={
                "listeners": "PLAINTEXT://${host}:${port},CONTROLLER://${host}:${controller_port},"
                + listeners,
                "advertised.listeners": "PLAINTEXT://${host}:${port},CONTROLLER://${host}:${controller_port},"
                + listeners,
                "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,"
                "SASL:SASL_PLAINTEXT,BOTH:SASL_SSL",
                "ssl.keystore.type": "PEM",
                "ssl.keystore.location": str(folder / "keystore.pem"),
                "sasl.enabled.mechanisms": "PLAIN",
                "listener.name.sasl.plain.sasl.jaas.config": plain,
                "listener.name.both.plain.sasl.jaas.config": plain,
                "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
                "super.users": "User:ANONYMOUS",
                "allow.everyone.if.no.acl.found": "false",
            },
        )

    def _openssl(self, command):
        subprocess.run(["openssl", *command.split()], cwd=self.folder, check=True, capture_output=True)

    def address(self, listener):
        return f"{HOST}:{self.ports[listener]}"

    def options(self, protocol, password="right"):
        """Settings that speak `protocol`, as the user of the tests where it asks for one."""
        options = {"security_protocol": protocol}
        if protocol.endswith("SSL"):
            options["ssl_ca_file"] = str(self.folder / "ca.pem")
        if protocol.startswith("SASL"):
            options |= {
                "sasl_mechanism": "PLAIN",
                "sasl_username": USER,
                "sasl_password_file": str(self.folder / password),
                "allow_plaintext": True,
            }
        return options


@pytest.fixture(scope="session")
def secured(tmp_path_factory):
    if kraft.lacking():
        pytest.skip(kraft.lacking())
    with ExitStack() as stack:
        kafka = Secured(tmp_path_factory.mktemp("secured"))
        stack.enter_context(kafka.cluster)
        yield kafka


@pytest.mark.parametrize(
    ("listener", "protocol"),
    [("PLAIN", "PLAINTEXT"), ("TLS", "SSL"), ("SASL", "SASL_PLAINTEXT"), ("BOTH", "SASL_SSL")],
)
def test_nothing_is_wrong_where_settings_and_listener_fit(secured, listener, protocol):
    settings = Cluster("kafka", secured.address(listener)).settings(**secured.options(protocol))
    assert diagnosis.ask(settings.brokers, aiokafka_options(settings)) == {secured.address(listener): None}
    topics.wait_for_broker(settings, lambda _: None)


@pytest.mark.parametrize(
    ("listener", "protocol", "more", "sentence"),
    [
        ("PLAIN", "SSL", {}, "this listener has no TLS, and CALLFUNNEL_SECURITY_PROTOCOL is SSL"),
        ("PLAIN", "SASL_SSL", {}, "this listener has no TLS, and CALLFUNNEL_SECURITY_PROTOCOL is SASL_SSL"),
        ("PLAIN", "SASL_PLAINTEXT", {}, "this listener asks for no credentials"),
        ("TLS", "PLAINTEXT", {}, "this listener wants TLS, and CALLFUNNEL_SECURITY_PROTOCOL is PLAINTEXT"),
        ("TLS", "SSL", {"ssl_ca_file": None}, "its certificate is not accepted"),
        ("SASL", "PLAINTEXT", {}, "this listener wants credentials (PLAIN)"),
        ("SASL", "SASL_PLAINTEXT", {"password": "wrong"}, "it refuses user and password (PLAIN)"),
        ("SASL", "SASL_PLAINTEXT", {"sasl_mechanism": "SCRAM-SHA-512"}, "it does not offer SCRAM-SHA-512"),
        ("BOTH", "SASL_SSL", {"password": "wrong"}, "it refuses user and password (PLAIN)"),
        (
            "BOTH",
            "SSL",
            {},
            "this listener wants credentials (PLAIN): set CALLFUNNEL_SECURITY_PROTOCOL to SASL_SSL",
        ),
    ],
)
def test_what_does_not_fit_is_named(secured, listener, protocol, more, sentence):
    password = more.get("password", "right")
    options = secured.options(protocol, password) | {k: v for k, v in more.items() if k != "password"}
    settings = Cluster("kafka", secured.address(listener)).settings(**options, wait_seconds=0)
    (problem,) = diagnosis.ask(settings.brokers, aiokafka_options(settings)).values()
    assert sentence in problem
    with pytest.raises(BrokerUnavailable, match="No Kafka broker answers") as failure:
        topics.wait_for_broker(settings, lambda _: None)
    assert sentence in failure.value.message
    assert PASSWORD not in failure.value.message


def test_of_several_addresses_each_is_told(secured):
    dead, unknown = f"{HOST}:1", "kafka.invalid:9092"
    settings = Cluster("kafka", f"{dead},{unknown},{secured.address('PLAIN')}").settings()
    found = diagnosis.ask(settings.brokers, aiokafka_options(settings))
    assert "refused" in found[dead]
    assert "cannot be resolved" in found[unknown]
    assert found[secured.address("PLAIN")] is None


RESOURCES = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional-id": ResourceType.TRANSACTIONAL_ID,
}
OPERATIONS = {
    "Read": AclOperation.READ,
    "Write": AclOperation.WRITE,
    "Describe": AclOperation.DESCRIBE,
    "DescribeConfigs": AclOperation.DESCRIBE_CONFIGS,
}


class Rights:
    """What the user of the tests may do."""

    def __init__(self, secured):
        self._admin = AdminClient({"bootstrap.servers": secured.address("PLAIN")})

    def grant(self, rights):
        bindings = [
            AclBinding(*_rule(right), f"User:{USER}", "*", OPERATIONS[operation], AclPermissionType.ALLOW)
            for right in rights
            for operation in right.operations
        ]
        for future in self._admin.create_acls(bindings).values():
            future.result(20)

    def take(self, right, operation):
        rule = AclBindingFilter(
            *_rule(right), f"User:{USER}", "*", OPERATIONS[operation], AclPermissionType.ALLOW
        )
        for future in self._admin.delete_acls([rule]).values():
            assert len(future.result(20)) == 1


def _rule(right):
    pattern = ResourcePatternType.PREFIXED if right.is_prefix else ResourcePatternType.LITERAL
    return RESOURCES[right.resource], right.name, pattern


@pytest.fixture
def worker_rights(secured, tmp_path):
    """Topics that an administrator made, all rights a worker needs, and workers that log in as the user."""
    settings = Cluster("kafka", secured.address("PLAIN")).settings(
        partitions=PARTITIONS, clock="event", dlq_stop=True
    )
    topics.create(settings)
    rights = Rights(secured)
    rights.grant(needed(settings)["worker"])
    own = replace(settings, broker=secured.address("SASL"), **secured.options("SASL_PLAINTEXT"), view=False)
    with Workers(own, tmp_path) as workers:
        yield rights, settings, workers


def test_the_rights_that_are_named_are_enough_for_a_worker(worker_rights):
    _, settings, workers = worker_rights
    records = calls(clients=50, live_events=200)
    publish(settings, records)
    worker = workers.start(view=True)
    workers.wait(len(records), **asdict(settings))
    worker.wait_until_ready()


def test_a_view_that_lacks_a_right_names_it(worker_rights):
    rights, settings, workers = worker_rights
    right = next(one for one in needed(settings)["view"] if "Read" in one.operations)
    rights.take(right, "Read")
    view = View.of(workers.settings)
    view.start()
    try:
        deadline = Deadline(30)
        while str(right) not in (view.not_ready() or "") and not deadline.is_over:
            time.sleep(0.1)
        assert str(right) in view.not_ready()
    finally:
        view.stop()


def _each_right():
    settings = Settings(dlq_stop=True)
    return [(n, o) for n, right in enumerate(needed(settings)["worker"]) for o in right.operations]


@pytest.mark.parametrize(("number", "operation"), _each_right())
def test_a_right_that_is_missing_is_named(worker_rights, number, operation):
    rights, settings, workers = worker_rights
    right = needed(settings)["worker"][number]
    rights.take(right, operation)
    worker = workers.start()
    assert worker.exit_code(60) == 78
    assert str(replace(right, operations=(operation,))) in worker.log
    assert (
        "callfunnel topics rights" in worker.log
        or right.command(worker.settings.broker, f"User:{USER}")[:60] in worker.log
    )

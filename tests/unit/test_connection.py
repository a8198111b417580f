"""Each client is told the same about the broker, and a password goes to the client and nowhere else."""

import ssl
import subprocess

import pytest
from aiokafka import AIOKafkaProducer
from kafka import KafkaConsumer

from callfunnel.agents.config import Settings
from callfunnel.agents.errors import SettingError
from callfunnel.agents.kafka.connection import (
    Secret,
    aiokafka_options,
    faust_credentials,
    kafka_python_options,
)


@pytest.fixture
def password_file(tmp_path):
    file = tmp_path / "password"
    file.write_text("hunter2\n")
    return str(file)


@pytest.fixture
def scram(password_file):
    return Settings(
        broker="a:9092,b:9092",
        security_protocol="SASL_SSL",
        sasl_mechanism="SCRAM-SHA-512",
        sasl_username="callfunnel",
        sasl_password_file=password_file,
    )


def test_without_security_a_client_is_told_the_addresses_only():
    expected = {"bootstrap_servers": ["a:1", "b:2"], "security_protocol": "PLAINTEXT"}
    settings = Settings(broker="a:1,b:2")
    assert aiokafka_options(settings) == kafka_python_options(settings) == expected
    assert faust_credentials(settings) is None


def test_sasl_over_tls_takes_the_password_from_its_file_and_checks_the_brokers_name(scram):
    for options in (aiokafka_options(scram), kafka_python_options(scram)):
        assert options["sasl_plain_password"] == "hunter2"
        assert options["sasl_mechanism"] == "SCRAM-SHA-512"
        assert options["ssl_context"].check_hostname
        assert options["ssl_context"].verify_mode == ssl.CERT_REQUIRED
        assert "hunter2" not in repr(options)


def test_the_libraries_know_every_option(scram):
    assert set(kafka_python_options(scram)) <= set(KafkaConsumer.DEFAULT_CONFIG)
    assert set(aiokafka_options(scram)) <= set(AIOKafkaProducer.__init__.__kwdefaults__)


def test_faust_is_never_left_without_encryption_by_mistake(scram):
    credentials = faust_credentials(scram)
    assert credentials.protocol.value == "SASL_SSL"
    assert (credentials.username, credentials.password) == ("callfunnel", "hunter2")
    assert "hunter2" not in repr(credentials)
    assert faust_credentials(Settings(security_protocol="SSL")).protocol.value == "SSL"


def test_an_empty_password_file_is_refused(tmp_path, scram):
    (tmp_path / "password").write_text("\n")
    with pytest.raises(SettingError, match="CALLFUNNEL_SASL_PASSWORD_FILE: the file is empty"):
        aiokafka_options(scram)


def test_a_secret_prints_as_stars():
    assert f"{[Secret('hunter2')]!r}" == "['***']"


@pytest.fixture
def client_certificate(tmp_path):
    """A certificate and its key, encrypted with the password of `password_file`."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-days", "2", "-subj", "/CN=callfunnel"),
            *("-passout", "pass:hunter2", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    return {"security_protocol": "SSL", "ssl_cert_file": str(certificate), "ssl_key_file": str(key)}


def test_a_client_certificate_is_loaded_with_the_password_of_its_key(client_certificate, password_file):
    settings = Settings(**client_certificate, ssl_key_password_file=password_file)
    assert isinstance(aiokafka_options(settings)["ssl_context"], ssl.SSLContext)


def test_a_key_without_its_password_is_refused_and_never_asked_for_at_the_terminal(client_certificate):
    with pytest.raises(
        SettingError, match="CALLFUNNEL_SSL_CERT_FILE: certificate, key and the key's password"
    ):
        aiokafka_options(Settings(**client_certificate))


def test_a_file_that_holds_no_certificates_is_refused(password_file):
    with pytest.raises(SettingError, match="CALLFUNNEL_SSL_CA_FILE: holds no certificates in PEM"):
        aiokafka_options(Settings(security_protocol="SSL", ssl_ca_file=password_file))

"""Which values of the header Host are ours."""

import asyncio
import socket

import pytest

from callfunnel.agents.view.hosts import Hosts


def why_not(host, names="", bound="127.0.0.1", *, is_loopback=True):
    return asyncio.run(Hosts(names, bound, is_loopback=is_loopback).why_not(host))


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:9464", "127.0.0.1", "127.8.8.8:1", "10.1.2.3:9464", "[::1]:9464", "[fe80::1]", "localhost",
        "LocalHost:9464", "localhost.:80", "demo.localhost:9464",
    ],
)  # fmt: skip
def test_addresses_and_localhost_are_always_ours(host):
    assert why_not(host) is None


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:9464", "localhost.evil.example", "evillocalhost",
        "127.0.0.1.evil.example", "0x7f.1", "", ":9464", "[::1", "[evil.example]", "a b", "localhost:port",
        "x@localhost", "localhost/x", "engine:9464", "127.0.0.1, evil.example", "::1", "é.example",
    ],
)  # fmt: skip
def test_any_other_name_is_refused_and_the_setting_named(host):
    said = why_not(host)
    assert repr(host) in said
    assert "CALLFUNNEL_HTTP_NAMES" in said


def test_what_is_said_of_a_long_name_is_short():
    assert len(why_not("x" * 8_000)) < 300


def test_names_that_are_given_are_ours_and_a_dot_stands_for_all_below():
    names = "engine,.Monitoring.Example"
    for host in ("engine:9464", "ENGINE", "a.monitoring.example", "b.a.monitoring.example:80"):
        assert why_not(host, names) is None
    for host in ("engine.example", "monitoring.example", "evilmonitoring.example"):
        assert why_not(host, names)


def test_a_star_is_any_name():
    assert why_not("evil.example", "*") is None


def test_the_name_that_the_pages_listen_at_is_ours():
    assert why_not("funnel.example:9464", bound="funnel.example") is None


def test_beyond_loopback_the_machines_own_names_are_ours(monkeypatch):
    asked = []

    def getaddrinfo(name, *_, **__):
        asked.append(name)
        return [(2, 1, 6, "Floor-1.example", ("10.0.0.1", 0)), (2, 2, 17, "", ("10.0.0.1", 0))]

    monkeypatch.setattr(socket, "gethostname", lambda: "floor-1.lan")
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)

    async def ask():
        hosts = Hosts("", "0.0.0.0", is_loopback=False)
        names = ("floor-1.lan:9464", "floor-1", "floor-1.example", "evil.example", "other.example")
        return [said is None for said in await asyncio.gather(*map(hosts.why_not, names))]

    assert asyncio.run(ask()) == [True, True, True, False, False]
    assert asked == ["floor-1.lan"]
    assert why_not("floor-1.lan")
    assert asked == ["floor-1.lan"]


def test_a_machine_without_an_address_of_its_own_has_its_name(monkeypatch):
    def fails(*_, **__):
        raise socket.gaierror("no such name")

    monkeypatch.setattr(socket, "gethostname", lambda: "floor-1")
    monkeypatch.setattr(socket, "getaddrinfo", fails)
    assert why_not("floor-1:9464", bound="::", is_loopback=False) is None
    assert why_not("", bound="::", is_loopback=False)

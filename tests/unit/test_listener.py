"""No client keeps another one out: whose connection is closed, when, and that the next one is always taken.

The server behind the listener is the pages, and the clients are sockets.
"""

import os
import resource
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from types import SimpleNamespace

import pytest

from callfunnel.agents.errors import SettingError
from callfunnel.agents.view import listener
from callfunnel.agents.view.http import Pages
from callfunnel.agents.view.listener import Listener
from patience import Deadline, slowness

ASK = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
LARGE = b"x" * 30_000_000
"""More than two machines' sockets hold for a client that does not read."""


@contextmanager
def served(render=lambda openmetrics: b"", **options):
    pages = Pages(
        "127.0.0.1",
        0,
        view=None,
        exposition=SimpleNamespace(render=render),
        not_ready=lambda: None,
        **options,
    )
    pages.start()
    try:
        yield pages
    finally:
        pages.stop()


class Client:
    def __init__(self, pages, sends=b""):
        self._socket = socket.create_connection(("127.0.0.1", pages._listener.port), timeout=30)
        self._socket.sendall(sends)

    def asks(self, request=ASK):
        """The beginning of the answer."""
        self._socket.sendall(request)
        return self._socket.recv(300)

    def reads_to_the_end(self):
        """Until the server closes the connection; how many bytes."""
        read = 0
        try:
            while got := self._socket.recv(1 << 20):
                read += len(got)
        except ConnectionResetError:
            pass
        return read

    @property
    def is_closed(self):
        self._socket.setblocking(False)
        try:
            return self._socket.recv(1) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:
            return True
        finally:
            self._socket.settimeout(30)

    def close(self):
        self._socket.close()


def until(holds):
    deadline = Deadline(30)
    while not holds():
        assert not deadline.is_over, "it did not come true"
        time.sleep(0.01)


@contextmanager
def clients():
    with ExitStack() as stack:
        yield lambda *of: stack.enter_context(closing(Client(*of)))


@contextmanager
def closing(client):
    yield client
    client.close()


def test_a_connection_beyond_the_limit_closes_the_one_that_has_waited_longest():
    with served(connections=3) as pages, clients() as client:
        first, second, third = client(pages), client(pages), client(pages)
        until(lambda: len(pages._listener._open) == 3)
        assert first.asks().startswith(
            b"HTTP/1.1 200 OK"
        )  # now it has waited for a shorter time than the second
        assert third.asks().startswith(b"HTTP/1.1 200 OK")
        assert client(pages).asks().startswith(b"HTTP/1.1 200 OK")
        assert second.reads_to_the_end() == 0
        assert not first.is_closed
        assert not third.is_closed


def test_many_connections_never_are_more_than_the_limit_and_each_new_one_is_answered():
    with served(connections=5) as pages, clients() as client:
        idle = [client(pages) for _ in range(60)]
        for _ in range(20):
            assert client(pages).asks().startswith(b"HTTP/1.1 200 OK")
            assert len(pages._listener._open) <= 5
        assert sum(not one.is_closed for one in idle) <= 5


def test_who_is_being_answered_is_not_closed_for_a_new_one(tmp_path):
    renders, goes_on = tmp_path / "renders", tmp_path / "goes-on"

    def render(openmetrics):
        renders.touch()
        until(goes_on.exists)
        return b"rendered"

    with served(render, connections=2) as pages, clients() as client:
        scrape = client(pages, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        until(renders.exists)
        for _ in range(10):
            assert client(pages).asks().startswith(b"HTTP/1.1 200 OK")
        goes_on.touch()
        assert scrape.reads_to_the_end() > len("rendered")


@pytest.mark.parametrize("sends", [b"", ASK, ASK[:20]], ids=["nothing", "a request", "half of a request"])
def test_a_connection_that_brings_no_request_is_closed(sends):
    with served(idle_seconds=0.2) as pages, clients() as client:
        idle = client(pages, sends)
        assert bool(idle.reads_to_the_end()) == (sends == ASK)


def test_a_request_that_comes_in_drops_is_closed(monkeypatch):
    monkeypatch.setattr(listener, "REQUEST_SECONDS", 0.2)
    with served() as pages, clients() as client:
        slow = client(pages, ASK[:5])
        until(lambda: slow.is_closed or slow._socket.send(b"a") == 0)


def test_a_client_that_does_not_take_its_answer_is_closed_and_its_socket_is_free():
    with served(lambda openmetrics: LARGE, idle_seconds=0.5 * slowness()) as pages, clients() as client:
        slow = client(pages, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        until(lambda: pages._listener._open)
        until(lambda: not pages._listener._open)
        assert slow.reads_to_the_end() < len(LARGE)
        quick = client(pages, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        assert quick.reads_to_the_end() > len(LARGE)


def test_a_request_that_is_too_large_is_refused():
    with served() as pages, clients() as client:
        header = b"X-Cookie: " + b"x" * 8_000 + b"\r\n"
        answer = client(pages).asks(ASK[:-2] + 10 * header)
        assert answer.startswith(b"HTTP/1.1 431 ")


def test_without_a_descriptor_the_longest_waiting_connection_makes_room(caplog):
    with ExitStack() as stack, served() as pages, clients() as client:
        idle = [client(pages) for _ in range(3)]
        until(lambda: len(pages._listener._open) == 3)
        late = socket.socket()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 10, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        with suppress(OSError):
            while True:
                stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        late.settimeout(30)
        late.connect(("127.0.0.1", pages._listener.port))
        late.sendall(ASK)
        assert late.recv(300).startswith(b"HTTP/1.1 200 OK")
        assert [one.is_closed for one in idle] == [True, False, False]
        late.close()
    assert "cannot take a connection to the HTTP pages: Too many open files" in caplog.text


def test_no_more_than_a_quarter_of_the_descriptors_is_taken(monkeypatch):
    monkeypatch.setattr("resource.getrlimit", lambda what: (40, 40))
    with served(connections=1000) as pages, clients() as client:
        for _ in range(30):
            client(pages)
        assert client(pages).asks().startswith(b"HTTP/1.1 200 OK")
        assert len(pages._listener._open) == 10


def listening(host, *ports):
    return Listener(host, ports, most=1, idle_seconds=1)


@contextmanager
def taken(count):
    """So many ports in a row, of which the last one is free."""
    while True:
        with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as first:
            ports = range(first.getsockname()[1], first.getsockname()[1] + count)
            try:
                for port in ports[1:-1]:
                    stack.enter_context(socket.create_server(("127.0.0.1", port)))
                socket.create_server(("127.0.0.1", ports[-1])).close()
            except OSError:
                continue
            yield ports
            return


def test_the_first_port_that_is_free_is_taken():
    with taken(3) as ports:
        assert listening("127.0.0.1", *ports).port == ports[2]
        with pytest.raises(OSError, match="in use"):
            listening("127.0.0.1", *ports[:2])


def test_a_name_with_several_addresses_has_one_port_at_all_of_them(monkeypatch):
    found = [(socket.AF_INET, 1, 6, "", (f"127.0.0.{n}", 0)) for n in (1, 2, 2)]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    both = listening("two.example", 0)
    assert [each.getsockname() for each in both._sockets] == [
        ("127.0.0.1", both.port),
        ("127.0.0.2", both.port),
    ]
    assert both.is_loopback
    with pytest.raises(OSError, match="in use"):
        listening("two.example", both.port)


def test_an_address_that_this_machine_lacks_is_left_out_unless_there_is_no_other(monkeypatch):
    found = [(socket.AF_INET, 1, 6, "", (address, 0)) for address in ("192.0.2.1", "127.0.0.1")]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: found)
    assert len(listening("two.example", 0)._sockets) == 1
    del found[1]
    with pytest.raises(OSError, match="assign requested address"):
        listening("two.example", 0)


def test_all_addresses_are_not_loopback():
    assert not listening("0.0.0.0", 0).is_loopback


def unset():
    exposition = SimpleNamespace(render=lambda openmetrics: b"")
    return Pages("127.0.0.1", None, view=None, exposition=exposition, not_ready=lambda: None)


def test_without_a_setting_the_next_free_port_is_taken_and_told(monkeypatch, caplog):
    with taken(2) as ports:
        monkeypatch.setattr("callfunnel.agents.view.http.USUAL_PORT", ports[0])
        monkeypatch.setattr("callfunnel.agents.view.http._LAST_PORT", ports[1])
        second = unset()
        second.start()
        try:
            assert second.url == f"http://127.0.0.1:{ports[1]}/"
            assert f"port {ports[0]} is taken: the pages are served at {second.url}" in caplog.text
            assert "CALLFUNNEL_HTTP_PORT" in caplog.text
            with pytest.raises(SettingError, match=f"listens on 127.0.0.1:{ports[0]} to {ports[1]} already"):
                unset().start()
        finally:
            second.stop()

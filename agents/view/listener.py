"""Takes connections for a server so that no client keeps another one out.

The law: the next connection is always taken. If as many are open as there may be, or no descriptor is left,
the one that has waited longest for its client is closed for it. A connection is closed by itself when its
client sends no whole request in time, or does not take the answer.
"""

import asyncio
import errno
import ipaddress
import logging
import math
import resource
import socket
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, cast

from callfunnel.agents.config import variable

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 10.0
"""How long a request may take from its first byte to its last."""

REQUEST_BYTES = 32_768
"""Upper bound for a request: browsers send the cookies of everything else on the same host with it."""

_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
_BACKLOG = 1_024
_LOOK_SECONDS = 0.5
_RETRY_SECONDS = 0.1
_LACKING = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})
_NOTHING_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """Listens at `host`, on the first of `ports` that is free at all of its addresses (0: any free one).

    It holds at most `most` connections, and a quarter of the process's descriptors: Kafka needs the others.
    It waits for each client for `idle_seconds` at most. Raises OSError, of the last port that was tried, when
    the address cannot be had.
    """

    def __init__(self, host: str, ports: Sequence[int], *, most: int, idle_seconds: float) -> None:
        self._sockets = _bound(host, ports)
        self._most = min(most, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        self._idle_seconds = idle_seconds
        self._open: set[_Connection] = set()
        self.port: int = self._sockets[0].getsockname()[1]

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        addresses = (listening.getsockname()[0] for listening in self._sockets)
        return all(ipaddress.ip_address(address).is_loopback for address in addresses)

    async def serve(self, new_protocol: Callable[[], asyncio.Protocol]) -> None:
        """Take connections until cancelled, which frees the port."""
        try:
            async with asyncio.TaskGroup() as group:
                for listening in self._sockets:
                    group.create_task(self._accept(listening, new_protocol))
                group.create_task(self._close_overdue())
        finally:
            for listening in self._sockets:
                listening.close()

    async def _accept(self, listening: socket.socket, new_protocol: Callable[[], asyncio.Protocol]) -> None:
        while True:
            await _is_readable(listening)
            try:
                arrived = _newest(listening, self._most)
            except OSError as error:
                logger.warning("cannot take a connection to the HTTP pages: %s", error.strerror)
                makes_room = error.errno in _NOTHING_LEFT and self._open
                if makes_room:
                    self._close_longest()
                await asyncio.sleep(0 if makes_room else _RETRY_SECONDS)  # the loop's next turn closes it
                continue
            if len(self._open) + len(arrived) > self._most:
                logger.warning(
                    "%d connections to the HTTP pages are open, the most there may be (%s, and a quarter of "
                    "ulimit -n): each new one closes the one that has waited longest for its client",
                    self._most,
                    variable("http_connections"),
                )
            while self._open and len(self._open) + len(arrived) > self._most:
                self._close_longest()
            # All at once: one by one, each would wait for the requests of those before it.
            async with asyncio.TaskGroup() as group:
                for accepted in arrived:
                    group.create_task(self._connect(accepted, new_protocol()))

    async def _connect(self, accepted: socket.socket, server: asyncio.Protocol) -> None:
        connection = _Connection(server, self._open, self._idle_seconds)
        with suppress(OSError):  # the client is gone already
            await asyncio.get_running_loop().connect_accepted_socket(lambda: connection, accepted)

    async def _close_overdue(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            for connection in [each for each in self._open if each.closes_at <= loop.time()]:
                connection.abort()

    def _close_longest(self) -> None:
        """One whose client waits for its answer only if there is no other."""
        min(self._open, key=lambda each: (each.is_answered, each.since)).abort()


@contextmanager
def answering(transport: asyncio.BaseTransport | None) -> Iterator[None]:
    """While the server works for the client at the other end, it does not wait for it."""
    connection = transport.get_protocol() if transport else None
    if not isinstance(connection, _Connection):  # closed meanwhile, or not a listener's
        yield
        return
    connection.answer()
    try:
        yield
    finally:
        connection.wait()


class _Connection(asyncio.Protocol):
    """Passes everything on to the server's own protocol, and knows how long its client has let us wait."""

    transport: asyncio.Transport

    def __init__(self, server: asyncio.Protocol, others: "set[_Connection]", idle_seconds: float) -> None:
        self._server = server
        self._open = others
        self._idle_seconds = idle_seconds
        self.wait()

    def wait(self) -> None:
        """For the client: to send its next request, and to take the answer to the last one."""
        self.is_answered = False
        self.since = asyncio.get_running_loop().time()
        self.closes_at = self.since + self._idle_seconds
        self._request_bytes = 0

    def answer(self) -> None:
        self.is_answered = True
        self.since = asyncio.get_running_loop().time()
        self.closes_at = math.inf

    def abort(self) -> None:
        self._open.discard(self)
        self.transport.abort()  # to `close` it would mean to wait until the client has taken what is written

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._open.add(self)
        self._server.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._open.discard(self)
        self._server.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.is_answered:
            if not self._request_bytes:
                ends_at = asyncio.get_running_loop().time() + REQUEST_SECONDS
                self.closes_at = min(self.closes_at, ends_at)
            self._request_bytes += len(data)
            if self._request_bytes > REQUEST_BYTES:
                self.transport.write(_TOO_LARGE)
                self.abort()
                return
        self._server.data_received(data)

    def eof_received(self) -> bool | None:
        return self._server.eof_received()

    def pause_writing(self) -> None:
        self._server.pause_writing()

    def resume_writing(self) -> None:
        self._server.resume_writing()


async def _is_readable(listening: socket.socket) -> None:
    """Until a client waits to be taken: without a descriptor, `accept` fails even when there is none."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    loop.add_reader(listening, readable.set)
    try:
        await readable.wait()
    finally:
        loop.remove_reader(listening)


def _newest(listening: socket.socket, most: int) -> deque[socket.socket]:
    """The newest `most` of those that wait to be taken; the others are closed before they cost anything.

    Raises OSError when the first one cannot be taken.
    """
    newest: deque[socket.socket] = deque()
    for _ in range(_BACKLOG):
        try:
            accepted, _ = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            break
        except OSError:
            if not newest:
                raise
            break
        accepted.setblocking(False)
        newest.append(accepted)
        if len(newest) > most:
            newest.popleft().close()
    return newest


def _bound(host: str, ports: Sequence[int]) -> list[socket.socket]:
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
    for port in ports:
        try:
            return _bound_to(addresses, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or port == ports[-1]:
                raise
    raise ValueError("there must be a port to try")


def _bound_to(addresses: Sequence[tuple[socket.AddressFamily, Any]], port: int) -> list[socket.socket]:
    """A socket for each of the addresses that this machine has; 0 is one port for all of them."""
    bound: list[socket.socket] = []
    lacking = None
    with ExitStack() as stack:
        for family, (address, _, *scope) in addresses:
            try:
                listening = socket.create_server((address, port, *scope), family=family, backlog=_BACKLOG)
            except OSError as error:
                if error.errno not in _LACKING:
                    raise
                lacking = error  # localhost may be an address of IPv6, too, on a machine without it
                continue
            bound.append(stack.enter_context(listening))
            listening.setblocking(False)
            port = listening.getsockname()[1]
        if lacking and not bound:
            raise lacking
        stack.pop_all()
    return bound

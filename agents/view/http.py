"""The HTTP pages: metrics, health, the live funnel and its API, in a thread of their own.

The law: no numbers while the view is not current, but always those of the engine itself, and a slow scrape
delays nobody, neither other requests nor the worker. No client keeps another one out
(`agents.view.listener`), and a page of another site reads nothing (`agents.view.hosts`). Only GET and HEAD
exist; nothing here changes anything.
"""

import asyncio
import errno
import gc
import gzip
import logging
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import orjson
from aiohttp import web
from prometheus_client.exposition import gzip_accepted

from callfunnel.agents.config import Settings, variable
from callfunnel.agents.errors import SettingError
from callfunnel.agents.threads import LoopThread
from callfunnel.agents.view.api import NoSuchSegmentError, funnel_document
from callfunnel.agents.view.exposition import OPENMETRICS, TEXT, Exposition, accepts_openmetrics
from callfunnel.agents.view.hosts import Hosts
from callfunnel.agents.view.listener import Listener, answering
from callfunnel.agents.view.page import STATIC, page
from callfunnel.agents.view.snapshot import View
from callfunnel.streams.windows import WINDOWS_AND_ALL

logger = logging.getLogger(__name__)

USUAL_PORT = 9464
_LAST_PORT = 9563
"""As far as a port is looked for when none is set: more processes on one host are given theirs."""

TURN_SECONDS = 0.001
"""Whoever waits for the interpreter while a page is rendered gets it after this time, not after 5 ms. Kept at
all times it would cost the fold a tenth.
"""

_COLLECT_SECONDS = 60.0

_FILES = {
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "callfunnel",
}

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Pages:
    """Serves until stopped. Without a view there are the metrics of the process alone.

    `not_ready` says what is missing, or nothing when this process does its work.
    """

    def __init__(
        self,
        host: str,
        port: int | None,
        *,
        view: View | None,
        exposition: Exposition,
        not_ready: Callable[[], str | None],
        names: str = "",
        connections: int = 100,
        idle_seconds: float = 75.0,
        grafana_url: str | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._names = names
        self._connections = connections
        self._idle_seconds = idle_seconds
        self._view = view
        self._exposition = exposition
        self._not_ready = not_ready
        self._grafana_url = grafana_url
        self._thread = LoopThread("pages", self._main)
        self._renderer = ThreadPoolExecutor(1, "render")
        self._rendering: dict[tuple[bool, bool], asyncio.Task[bytes]] = {}

    @classmethod
    def of(
        cls,
        settings: Settings,
        *,
        view: View | None,
        exposition: Exposition,
        not_ready: Callable[[], str | None],
    ) -> Self:
        """The pages as these settings ask for them."""
        return cls(
            settings.http_host,
            settings.http_port,
            view=view,
            exposition=exposition,
            not_ready=not_ready,
            names=settings.http_names,
            connections=settings.http_connections,
            idle_seconds=settings.http_idle_seconds,
            grafana_url=settings.grafana_url,
        )

    @property
    def url(self) -> str:
        """Where the pages are, once they are started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._listener.port}/"

    def start(self) -> None:
        """Serve; returns when requests are answered. Raises SettingError when the address cannot be had."""
        ports = range(USUAL_PORT, _LAST_PORT + 1) if self._port is None else [self._port]
        try:
            self._listener = Listener(
                self._host, ports, most=self._connections, idle_seconds=self._idle_seconds
            )
        except OSError as error:
            raise _unusable(self._host, self._port, error) from None
        if self._port is None and self._listener.port != USUAL_PORT:
            logger.warning(
                "port %d is taken: the pages are served at %s. Prometheus finds them only if its targets "
                "name this port; %s keeps it the same at every start",
                USUAL_PORT,
                self.url,
                variable("http_port"),
            )
        self._thread.start()

    def stop(self) -> None:
        """Finish the requests under way and free the port."""
        self._thread.stop()
        self._renderer.shutdown(wait=False)

    def app(self, *, is_loopback: bool = True) -> web.Application:
        """The pages as an aiohttp application; `is_loopback` if only this machine reaches them."""
        self._hosts = Hosts(self._names, self._host, is_loopback=is_loopback)
        app = web.Application(client_max_size=1024, middlewares=[self._admit])
        app.router.add_get("/", _file(page().encode(), "text/html"))
        for path, (name, kind) in _FILES.items():
            app.router.add_get(path, _file((STATIC / name).read_bytes(), kind))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/api/v1/funnel", self._funnel)
        app.router.add_get("/-/healthy", self._healthy)
        app.router.add_get("/-/ready", self._ready)
        app.on_response_prepare.append(_harden)
        return app

    async def _main(self, ready: Callable[[], None]) -> None:
        app = self.app(is_loopback=self._listener.is_loopback)
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=2)
        await runner.setup()
        assert runner.server is not None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._listener.serve(runner.server))
                group.create_task(_collect())
                gc.freeze()  # or the first collection would hold everybody up with what stays
                ready()
        finally:
            await runner.cleanup()

    @web.middleware
    async def _admit(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        with answering(request.transport):
            for host in request.headers.getall("Host", ()):
                why_not = await self._hosts.why_not(host)
                if why_not and request.path.startswith("/api/"):
                    return _json(421, {"error": why_not})
                if why_not:
                    return _text(421, why_not)
            return await handler(request)

    async def _metrics(self, request: web.Request) -> web.Response:
        openmetrics = accepts_openmetrics(request.headers.get("Accept", ""))
        zipped = gzip_accepted(request.headers.get("Accept-Encoding", ""))
        rendering = self._rendering.get((openmetrics, zipped))
        if rendering is None:
            rendering = asyncio.create_task(self._render(openmetrics, zipped))
            self._rendering[openmetrics, zipped] = rendering
        body = await asyncio.shield(rendering)  # others may wait for it after this client has gone
        headers = {"Content-Type": OPENMETRICS if openmetrics else TEXT, "Vary": "Accept, Accept-Encoding"}
        return web.Response(body=body, headers=headers | ({"Content-Encoding": "gzip"} if zipped else {}))

    async def _render(self, openmetrics: bool, zipped: bool) -> bytes:
        def render() -> bytes:
            usual = sys.getswitchinterval()
            sys.setswitchinterval(TURN_SECONDS)
            try:
                page = self._exposition.render(openmetrics)
                return gzip.compress(page, compresslevel=1) if zipped else page
            finally:
                sys.setswitchinterval(usual)

        try:
            if self._view:
                await self._view.fresh()
            return await asyncio.get_running_loop().run_in_executor(self._renderer, render)
        finally:
            del self._rendering[openmetrics, zipped]

    async def _funnel(self, request: web.Request) -> web.Response:
        asked = request.query
        for name in asked:
            if name not in ("window", "campaign", "source"):
                return _json(
                    400, {"error": f"unknown parameter {name!r}: there are window, campaign and source"}
                )
            if len(asked.getall(name)) > 1:
                return _json(400, {"error": f"{name} is given more than once"})
        window = asked.get("window", "1h")
        if window not in WINDOWS_AND_ALL:
            return _json(400, {"error": f"unknown window {window!r}: there are {', '.join(WINDOWS_AND_ALL)}"})
        view = self._view
        if view is None:
            return _json(
                404, {"error": "no view in this process: ask a worker that has one, or `callfunnel view`"}
            )
        await view.fresh()
        standing = view.standing()
        if standing.snapshot is None:
            return _json(503, {"state": standing.verdict, "error": standing.reason})
        try:
            document = funnel_document(
                standing.snapshot,
                now_s=view.now_s,
                delay_s=view.delay_s,
                window=window,
                campaign=asked.get("campaign"),
                source=asked.get("source"),
            )
        except NoSuchSegmentError as error:
            return _json(404, {"error": str(error)})
        told = {"state": standing.verdict, "reason": standing.reason, "grafana": self._grafana_url}
        return _json(200, document | told)

    async def _healthy(self, request: web.Request) -> web.Response:
        view = self._view
        return (
            _text(200, "healthy")
            if view is None or view.failure is None
            else _text(503, view.not_ready() or "")
        )

    async def _ready(self, request: web.Request) -> web.Response:
        missing = self._not_ready()
        return _text(200, "ready") if missing is None else _text(503, missing)


async def _collect() -> None:
    while True:  # a closed connection refers to itself, and the collector comes seldom by itself
        await asyncio.sleep(_COLLECT_SECONDS)
        gc.collect(0)


def _file(body: bytes, kind: str) -> Callable[[web.Request], Any]:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8")

    return answer


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")


def _json(status: int, content: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(content), content_type="application/json")


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _unusable(host: str, port: int | None, error: OSError) -> SettingError:
    tried = f"{USUAL_PORT} to {_LAST_PORT}" if port is None else str(port)
    if error.errno == errno.EADDRINUSE:
        return SettingError(
            f"{variable('http_port')}: another program listens on {host}:{tried} already; end it, or choose "
            "another port with --http-port (0: any free one)."
        )
    if error.errno == errno.EACCES:
        return SettingError(f"{variable('http_port')}: {port} needs privileges; choose one above 1023.")
    return SettingError(
        f"{variable('http_host')}: cannot listen on {host}:{tried}: {error.strerror or error}."
    )

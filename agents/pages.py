"""The HTTP pages: metrics, health, the live funnel and its API, in a thread of their own.

The law: no numbers while the view is not current, but always those of the engine itself, and a slow scrape
delays nobody, neither other requests nor the worker. Only GET and HEAD exist; nothing here changes anything.
"""

import asyncio
import errno
import gc
import gzip
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web
from prometheus_client.exposition import gzip_accepted

from agents.config import variable
from agents.document import ALL_WINDOWS, NoSuchSegmentError, funnel_document
from agents.errors import SettingError
from agents.exposition import OPENMETRICS, TEXT, Exposition, accepts_openmetrics
from agents.threads import LoopThread
from agents.view import View

TURN_SECONDS = 0.001
"""Whoever waits for the interpreter while a page is rendered gets it after this time, not after 5 ms. Kept at
all times it would cost the fold a tenth.
"""

_COLLECT_SECONDS = 60.0

_STATIC = Path(__file__).parent / "static"
_FILES = {
    "/": ("page.html", "text/html"),
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


class Pages:
    """Serves until stopped. Without a view there are the metrics of the process alone.

    `not_ready` says what is missing, or nothing when this process does its work.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        view: View | None,
        exposition: Exposition,
        not_ready: Callable[[], str | None],
        grafana_url: str | None = None,
    ) -> None:
        self._host = host
        self._port = port
        self._view = view
        self._exposition = exposition
        self._not_ready = not_ready
        self._grafana_url = grafana_url
        self._thread = LoopThread("pages", self._main)
        self._renderer = ThreadPoolExecutor(1, "render")
        self._rendering: dict[tuple[bool, bool], asyncio.Task[bytes]] = {}

    @property
    def url(self) -> str:
        """Where the pages are; the real port once they are started."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self._port}/"

    def start(self) -> None:
        """Serve; returns when requests are answered. Raises SettingError when the address cannot be had."""
        self._thread.start()

    def stop(self) -> None:
        """Finish the requests under way and free the port."""
        self._thread.stop()
        self._renderer.shutdown(wait=False)

    def app(self) -> web.Application:
        """The pages as an aiohttp application."""
        app = web.Application(client_max_size=1024)
        for path, (name, kind) in _FILES.items():
            app.router.add_get(path, _file(name, kind))
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/api/v1/funnel", self._funnel)
        app.router.add_get("/-/healthy", self._healthy)
        app.router.add_get("/-/ready", self._ready)
        app.on_response_prepare.append(_harden)
        return app

    async def _main(self, ready: Callable[[], None]) -> None:
        runner = web.AppRunner(self.app(), access_log=None, handle_signals=False, shutdown_timeout=2)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, self._host, self._port).start()
            except OSError as error:
                raise _unusable(self._host, self._port, error) from None
            self._port = runner.addresses[0][1]
            ready()
            gc.freeze()  # or the first collection would hold everybody up with what stays
            while True:  # a closed connection refers to itself, and the collector comes seldom by itself
                await asyncio.sleep(_COLLECT_SECONDS)
                gc.collect(0)
        finally:
            await runner.cleanup()

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
        if window not in ALL_WINDOWS:
            return _json(400, {"error": f"unknown window {window!r}: there are {', '.join(ALL_WINDOWS)}"})
        view = self._view
        if view is None:
            return _json(
                404, {"error": "no view in this process: ask a worker that has one, or `callfunnel view`"}
            )
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


def _file(name: str, kind: str) -> Callable[[web.Request], Any]:
    body = (_STATIC / name).read_bytes()

    async def answer(request: web.Request) -> web.Response:
        return web.Response(body=body, content_type=kind, charset="utf-8")

    return answer


def _text(status: int, text: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n")


def _json(status: int, content: dict[str, Any]) -> web.Response:
    return web.Response(status=status, body=orjson.dumps(content), content_type="application/json")


async def _harden(request: web.Request, response: web.StreamResponse) -> None:
    response.headers.update(_HEADERS)


def _unusable(host: str, port: int, error: OSError) -> SettingError:
    if error.errno == errno.EADDRINUSE:
        why = f"another program listens on {host}:{port} already"
        return SettingError(
            f"{variable('http_port')}: {why}; end it, or choose another with --http-port (0: any)."
        )
    if error.errno == errno.EACCES:
        return SettingError(f"{variable('http_port')}: {port} needs privileges; choose one above 1023.")
    return SettingError(
        f"{variable('http_host')}: cannot listen on {host}:{port}: {error.strerror or error}."
    )

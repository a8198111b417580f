"""A real browser: the machine's Chromium without a window, driven over its DevTools protocol.

Nothing is downloaded and nothing needs installing but the browser itself (Debian: apt-get install chromium).
"""

import asyncio
import base64
import json
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, Self

import aiohttp
import pytest

from callfunnel.agents.demo.broker import end_process, start_process
from callfunnel.agents.scratch import Scratch
from patience import Deadline

PATIENCE_SECONDS = 30.0
PHONE, DESKTOP = 390, 1200
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
_OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-extensions", "--no-proxy-server", "--force-color-profile=srgb", "--lang=en-GB"),
)
KEYS = {"Tab": 9, "Enter": 13, "ArrowRight": 39, "ArrowLeft": 37}


def program() -> str | None:
    """The browser of this machine."""
    return next((found for name in _NAMES if (found := shutil.which(name))), None)


class Browser:
    """One browser with a profile of its own, while the context lasts. Skips the test where there is none."""

    def __enter__(self) -> Self:
        found = program()
        if found is None:
            pytest.skip("no Chromium is installed (Debian: apt-get install chromium)")
        self._scratch = Scratch("browser")
        self._folder = self._scratch.path
        log = self._folder / "chromium.log"
        command = [found, *_OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={self._folder}"]
        self._process = start_process(
            [*command, "about:blank"], log, os.environ | {"LANGUAGE": "en", "TMPDIR": str(self._folder)}
        )
        self._loop = asyncio.new_event_loop()
        told = self._folder / "DevToolsActivePort"
        deadline = Deadline(PATIENCE_SECONDS)
        while not told.exists() or len(told.read_text().split()) < 2:
            if self._process.poll() is not None or deadline.is_over:
                self.__exit__()
                raise AssertionError(f"{found} does not start:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)
        port, path = told.read_text().split()
        self._connection = self._loop.run_until_complete(_connect(f"ws://127.0.0.1:{port}{path}"))
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_connection"):
            self._loop.run_until_complete(self._connection.close())
        self._loop.close()
        end_process(self._process, patience_seconds=5)
        self._scratch.remove()

    def open(
        self, url: str, *, width: int = DESKTOP, height: int = 900, dark: bool = False, script: bool = True
    ) -> "Page":
        """A new tab of this size, in a light or dark scheme, with or without JavaScript."""
        return Page(self._loop, self._connection, url, width, height, dark=dark, script=script)


class Page:
    """A tab. What it complained about is kept in `complaints`."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connection: "_Connection",
        url: str,
        width: int,
        height: int,
        *,
        dark: bool,
        script: bool,
    ) -> None:
        self._loop = loop
        self._connection = connection
        self._session: str | None = None
        self._target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self._ask("Target.attachToTarget", targetId=self._target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._ask(f"{domain}.enable")
        self._size = {"width": width, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", height=height, **self._size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self._ask("Emulation.setFocusEmulationEnabled", enabled=True)
        self._ask("Emulation.setScriptExecutionDisabled", value=not script)
        self._ask("Page.navigate", url=url)
        self.wait("document.readyState === 'complete' && location.href !== 'about:blank'")

    @property
    def complaints(self) -> list[str]:
        """Errors and warnings of the page's scripts, of the browser about it, and requests that failed."""
        self.ask("0")  # what was said before is here by now
        return [text for session, text in self._connection.complaints if session == self._session]

    def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression, or of the promise that it is."""
        answer = self._ask("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            raise AssertionError(f"{expression}: {answer['exceptionDetails']['exception']['description']}")
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = PATIENCE_SECONDS) -> None:
        """Wait until an expression is true."""
        deadline = Deadline(seconds)
        while not self.ask(f"Boolean({expression})"):
            assert not deadline.is_over, f"not true after {seconds:g} s: {expression}"
            time.sleep(0.05)

    def press(self, key: str) -> None:
        """Press a key and let it go."""
        named = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self._ask("Input.dispatchKeyEvent", type="keyDown", **named, **text)
        self._ask("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, *, whole: bool = True) -> bytes:
        """What it looks like, as PNG: the whole page, or what is seen of it without scrolling."""
        if whole:
            height = self.ask("Math.ceil(document.documentElement.getBoundingClientRect().height)")
            self._ask("Emulation.setDeviceMetricsOverride", height=height, **self._size)
            self.ask("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """Close the tab."""
        self._session = None
        self._ask("Target.closeTarget", targetId=self._target)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        answer = self._connection.command(method, self._session, parameters)
        return self._loop.run_until_complete(asyncio.wait_for(answer, PATIENCE_SECONDS))


class _Connection:
    def __init__(self, session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._client = session
        self._socket = socket
        self._asked = 0
        self.complaints: list[tuple[str | None, str]] = []

    async def command(self, method: str, session: str | None, parameters: dict[str, Any]) -> dict[str, Any]:
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        while True:
            answer = json.loads(await self._socket.receive_str())
            if answer.get("id") == self._asked:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            if (tell := _COMPLAINTS.get(answer.get("method"))) and (text := tell(answer["params"])):
                self.complaints.append((answer.get("sessionId"), text))

    async def close(self) -> None:
        await self._socket.close()
        await self._client.close()


_COMPLAINTS: dict[str, Callable[[dict[str, Any]], str | None]] = {
    "Runtime.exceptionThrown": lambda told: str(told["exceptionDetails"]),
    "Runtime.consoleAPICalled": lambda told: (
        str(told["args"]) if told["type"] in ("error", "warning", "assert") else None
    ),
    "Log.entryAdded": lambda told: (
        f"{told['entry']['text']} {told['entry'].get('url', '')}"
        if told["entry"]["level"] in ("error", "warning")
        else None
    ),
}


async def _connect(url: str) -> _Connection:
    session = aiohttp.ClientSession()
    return _Connection(session, await session.ws_connect(url, max_msg_size=0))

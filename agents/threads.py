"""A coroutine in a thread and event loop of its own, so that it never delays the worker's loop."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future


class LoopThread:
    """Runs `main(ready)` until it is stopped; `main` calls `ready()` when others may count on it.

    A failure of `main` before `ready()` is raised by `start`; a later one is kept in `failure`.
    """

    def __init__(self, name: str, main: Callable[[Callable[[], None]], Coroutine[None, None, None]]) -> None:
        self._main = main
        self._ready: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.failure: BaseException | None = None

    def start(self) -> None:
        """Start, and return when `main` is ready."""
        self._thread.start()
        self._ready.result()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Cancel `main` and wait for its end."""
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        if self._thread.ident is not None:
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        try:
            asyncio.run(self._supervise())
        except BaseException as failure:  # handed over to the thread that asks
            self.failure = failure
            if not self._ready.done():
                self._ready.set_exception(failure)

    async def _supervise(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._main(self._tell_ready))
        try:
            await self._task
        except asyncio.CancelledError:
            if not self._ready.done():
                self._ready.set_result(None)

    def _tell_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

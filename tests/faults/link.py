"""A slow link: a proxy on loopback that lets so many bytes a second through to a client."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from callfunnel.agents.threads import LoopThread

HOST = "127.0.0.1"
CHUNK = 8_192


class SlowLink:
    """Listens at `port` while it is entered and passes everything on to and from `target`, also a port."""

    def __init__(self, port: int, target: int, bytes_a_second: int) -> None:
        self._port, self._target, self._rate = port, target, bytes_a_second
        self._free_at = 0.0
        self._thread = LoopThread("link", self._main)

    def __enter__(self) -> "SlowLink":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.stop()

    async def _main(self, ready: Callable[[], None]) -> None:
        async with asyncio.TaskGroup() as passing:

            def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                passing.create_task(self._pass_on(reader, writer))

            async with await asyncio.start_server(accept, HOST, self._port):
                ready()
                await asyncio.get_running_loop().create_future()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            its_reader, its_writer = await asyncio.open_connection(HOST, self._target, limit=CHUNK)
            upwards = asyncio.create_task(self._copy(reader, its_writer))
            try:
                await self._copy(its_reader, writer, slowly=True)
            finally:
                upwards.cancel()
                its_writer.close()
                writer.close()

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowly: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK):
                if slowly:  # all connections share the link
                    now = time.monotonic()
                    self._free_at = max(now, self._free_at) + len(data) / self._rate
                    await asyncio.sleep(self._free_at - now)
                writer.write(data)
                await writer.drain()

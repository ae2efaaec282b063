"""A TCP line between a spoke and what it talks to, that is slow, far away, or cut again and again. TLS goes through untouched."""

import asyncio
import threading
from typing import Self

CHUNK = 32 * 1024


class BadLink:
    """Listens on `port` and passes on to `to`. Bytes to the spoke are counted in `down`, its connections in `calls`.

    `delay_s`: each way. `rate`: bytes a second to the spoke. `cut_every`: bytes to the spoke after which a connection is cut.
    """

    def __init__(self, to: int, *, delay_s: float = 0.0, rate: float = 0.0, cut_every: int = 0) -> None:
        self._to, self._delay_s, self._rate, self._cut_every = to, delay_s, rate, cut_every
        self.port = self.down = self.calls = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="bad-link")

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop, self._tasks = asyncio.Event(), set[asyncio.Task[None]]()
        server = await asyncio.start_server(self._called, "127.0.0.1", 0, limit=CHUNK)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _called(self, near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        self.calls += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        to_far: asyncio.StreamWriter | None = None
        try:
            far, to_far = await asyncio.open_connection("localhost", self._to, limit=CHUNK)
            ways = [asyncio.ensure_future(self._pass(near, to_far)), asyncio.ensure_future(self._pass(far, to_near, down=True))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # nobody there: the caller is cut off
        finally:
            for writer in (to_near, to_far):
                if writer is not None:
                    writer.transport.abort()
            self._tasks.discard(task)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, down: bool = False) -> None:
        line: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(256)
        sending = asyncio.ensure_future(self._deliver(line, writer, down=down))
        try:
            while data := await reader.read(CHUNK):
                await line.put((self._loop.time() + self._delay_s, data))
                if sending.done():
                    return
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def _deliver(self, line: "asyncio.Queue[tuple[float, bytes]]", writer: asyncio.StreamWriter, *, down: bool) -> None:
        sent = 0
        while True:
            due, data = await line.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            writer.write(data)
            await writer.drain()
            if down:
                sent += len(data)
                self.down += len(data)
                if self._cut_every and sent >= self._cut_every:
                    writer.transport.abort()
                    return
                if self._rate:
                    await asyncio.sleep(len(data) / self._rate)

"""A real server on a real home, in a thread of the test."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import httpx
import pytest
import uvloop

from spoke_agent.server.app.server import InferenceServer
from spoke_agent.server.settings import ServeSettings
from spoke_agent.server_api.client import ControlClient
from tests.spoke_agent.server.sites import Site


class Running:
    """A server that listens; `http` and `control` talk to it."""

    def __init__(self, site: Site, **settings: object) -> None:
        self.site = site
        self.loop = uvloop.new_event_loop()  # as `spoke serve` has it: its clock knows only milliseconds
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()
        self.server = self.call(self._start(ServeSettings(home=site.home, **settings)))  # type: ignore[arg-type]
        self.port: int = self.server.port or 0
        self.url = f"http://127.0.0.1:{self.port}"
        self.http = httpx.Client(base_url=self.url, timeout=30)
        self.control = ControlClient(site.home / "run" / "control.sock")

    def call(self, coroutine):
        future: Future = asyncio.run_coroutine_threadsafe(coroutine, self.loop)
        return future.result(timeout=60)

    def close(self) -> None:
        if self.loop.is_closed():
            return
        self.http.close()
        self.control.close()
        self.call(self.server.stop())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(timeout=10)
        self.loop.close()

    def infer(self, body: object, model: str = "digits", **kwargs: object) -> httpx.Response:
        return self.http.post(f"/v2/models/{model}/infer", json=body, **kwargs)  # type: ignore[arg-type]

    @staticmethod
    async def _start(settings: ServeSettings) -> InferenceServer:
        server = InferenceServer(settings)
        await server.start()
        return server


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "home")


@pytest.fixture
def run() -> Iterator[Callable[..., Running]]:
    """Start servers; all are stopped at the end."""
    started: list[Running] = []

    def start(site: Site, **settings: object) -> Running:
        started.append(Running(site, **settings))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server with `digits@1` and `echo@1` for a whole file, for tests that change nothing."""
    from tests.spoke_agent.server.sites import echo, echo_contract, echo_golden

    site = Site(tmp_path_factory.mktemp("shared") / "home")
    site.slots(champion=site.publish(1))
    kinds = echo_kinds()
    slot = site.publish(1, model="echo", proto=echo(kinds), contract=echo_contract(kinds), golden_inputs=echo_golden(kinds))
    site.slots("echo", champion=slot)
    running = Running(site)
    yield running
    running.close()


def echo_kinds() -> dict[str, int]:
    from onnx import TensorProto as T

    return {
        "BOOL": T.BOOL,
        "UINT8": T.UINT8,
        "UINT16": T.UINT16,
        "UINT32": T.UINT32,
        "UINT64": T.UINT64,
        "INT8": T.INT8,
        "INT16": T.INT16,
        "INT32": T.INT32,
        "INT64": T.INT64,
        "FP16": T.FLOAT16,
        "FP32": T.FLOAT,
        "FP64": T.DOUBLE,
        "BYTES": T.STRING,
    }

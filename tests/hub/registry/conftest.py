import asyncio
import threading

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from hub.registry.routes import router, unsafe_allow_all
from hub.registry.store import RegistryStore


class _Server(uvicorn.Server):
    def __init__(self, app):
        super().__init__(uvicorn.Config(app, port=0, log_level="error"))
        self.ready = threading.Event()

    async def startup(self, sockets=None):
        await super().startup(sockets)
        self.ready.set()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.servers[0].sockets[0].getsockname()[1]}"


def application(store, authorize=unsafe_allow_all, admission=None):
    app = FastAPI()
    app.include_router(router(store, authorize, admission))
    return app


@pytest.fixture
def serve():
    """Start a registry over a store; returns its address."""
    running = []

    def start(store, authorize=unsafe_allow_all, admission=None):
        server = _Server(application(store, authorize, admission))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        assert server.ready.wait(20)
        return server.url

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture
def store(tmp_path):
    return RegistryStore(tmp_path / "registry")


class _InProcess(httpx.BaseTransport):
    """The application, called from a plain client."""

    def __init__(self, app):
        self._inner = httpx.ASGITransport(app)

    def handle_request(self, request):
        async def ask():
            asked = httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            answer = await self._inner.handle_async_request(asked)
            return httpx.Response(answer.status_code, headers=answer.headers, content=await answer.aread())

        return asyncio.run(ask())


@pytest.fixture
def client(store):
    """The routes in this process; the tests of whole versions go through a real server."""
    with httpx.Client(transport=_InProcess(application(store)), base_url="http://registry") as client:
        yield client

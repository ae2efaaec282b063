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


@pytest.fixture
def serve():
    """Start a registry over a store; returns its address."""
    running = []

    def start(store, authorize=unsafe_allow_all):
        app = FastAPI()
        app.include_router(router(store, authorize))
        server = _Server(app)
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


@pytest.fixture
def client(serve, store):
    with httpx.Client(base_url=serve(store), timeout=20) as client:
        yield client

"""A small hub and spokes on an in-memory broker; agents run in the test's own thread, round by round."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from spoke_agent.daemon.wiring import AgentComponents, assemble
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from sync.bus.memory import MemoryBroker
from sync.core.clock import Clock, ManualClock
from sync.core.types import SpokeId
from sync.protocol.topics import hub_rights, spoke_rights
from tests.samples.model_folder import packed
from tests.spoke_agent.daemon.smallhub import SmallHub
from tests.spoke_agent.fakes import FakeServer

ME = SpokeId("frankfurt")


class Field:
    """One hub, one spoke."""

    def __init__(self, folder: Path, *, zone: str = "eu") -> None:
        self.folder, self.broker = folder, MemoryBroker()
        self.hub = SmallHub(folder / "hub", self.broker.client("hub", hub_rights()), zone=zone)
        self.hub.open()
        self.home = SpokeHome(folder / "spoke")
        self.hub.enrol(self.home.root)
        self.server = FakeServer(self.home.slots, ManualClock())
        self.bus = None
        self._open = contextlib.ExitStack()
        self.components: AgentComponents | None = None

    def package(self, version: int, **release: object) -> str:
        layout, index = packed(self.folder / f"build-{version}", version=version)
        for blob in (layout.folder / "blobs" / "sha256").iterdir():
            self.hub.layout.put(blob.read_bytes())
        return self.hub.release(index, version, **release)

    def start(self, *, clock: Clock | None = None, **settings: object) -> AgentComponents:
        self.bus = self.broker.client(ME.username, spoke_rights(ME, self.hub.zone))
        chosen = SpokeSettings(**{"tick_s": 0.02, "retry_s": 0.05, **settings})
        self.components = self._open.enter_context(assemble(self.home, chosen, bus=self.bus, server=self.server, clock=clock))
        self.components.agent.begin()
        return self.components

    def stop(self) -> None:
        if self.components is not None:
            self.components.agent.end()
            self.components = None
        self._open.close()

    def until(self, done: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, (self.hub.chain(ME), self.components.agent.last_refusal)
            self.components.agent.turn()

    def settled(self, state: str = "committed") -> None:
        self.until(lambda: self.hub.chain(ME)[-1:] == [state])

    def close(self) -> None:
        self.stop()
        self.hub.close()


@pytest.fixture
def field(tmp_path: Path) -> Iterator[Field]:
    made = Field(tmp_path)
    yield made
    made.close()

"""One hub and one spoke's home, of real parts: TUF, directives, publisher's signature, package, block sender and receiver.

The spoke serves version 1 with an adapter of its own. Version 2 has the same trunk and another vocabulary, so the adapter still
fits. Only two things are fakes: the broker is the one in memory, and the serving process answers without loading a model (it
writes nothing of an update; that it may be killed itself is tests/spoke_agent/daemon/test_two_processes.py).
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np

from model_formats.core.types import digest_of
from model_formats.delta.encode import encode
from model_formats.package import open_package, pack
from spoke_agent.daemon import wiring as assembling
from spoke_agent.daemon.sideload import follow_through, take_in
from spoke_agent.daemon.wiring import AgentComponents, assemble
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.slots import AdapterSlot, edit_slots
from sync import store
from sync.bus.bus import Message
from sync.bus.memory import MemoryBroker
from sync.core.clock import ManualClock, SystemClock
from sync.core.types import TERMINAL, Reason, SpokeId
from sync.protocol import topics
from sync.protocol.messages import DeltaOffer, DesiredModel, ProbationTerms
from sync.sideload.bundle import contents_of, write_bundle
from sync.transfer.sender import BlobSender
from tests.samples.model_folder import VOCABULARY, WEIGHTS, write_model_folder
from tests.spoke_agent.daemon.smallhub import SmallHub
from tests.spoke_agent.fakes import Behaviour, FakeServer

ME = SpokeId("frankfurt")
SETTINGS = SpokeSettings(tick_s=0.01, retry_s=0.02, transfer_tries=30)
HEAD = b"a head that was fitted here"
PATIENCE_S = 60.0
store.SYNC_BYTES = 2 * store.BLOCK_SIZE  # so that syncs in the middle of a file are among what is cut
TRUNK = np.random.default_rng(7).bytes(300_000)


class DoesNotEnd(Exception):
    """The process lives, and nothing happens any more."""


def vocabulary(version: int) -> bytes:
    """A million bytes, of which another version changes fifty."""
    words = np.frombuffer(np.random.default_rng(8).bytes(1_000_000), np.uint8).copy()
    words[np.random.default_rng(version).integers(0, words.size, 50)] ^= 1
    return words.tobytes()


class Hub(SmallHub):
    """Prepared once; each process opens its own broker on what was prepared."""

    files: dict[str, bytes]

    def open(self) -> None:
        self.bus = MemoryBroker().client("hub", topics.hub_rights())
        self.sender = BlobSender(self.bus, self.layout, grace=0.0)
        super().open()

    def publish(self) -> None:
        for name, data in self.files.items():
            self.bus.publish(Message(topics.tuf(self.zone, name), data, retain=True))


class SweepRun:
    """`template`: a home that serves version 1, once `settle` was called."""

    def __init__(self, folder: Path) -> None:
        self.hub = Hub(folder / "hub", MemoryBroker().client("hub"))
        self.hub.files = {}
        self.folder, self.template, self.stick = folder, folder / "template", folder / "stick.tar"
        self.index = {1: self._package(1)}
        self.hub.enrol(self.template, ME.site)
        self.home = SpokeHome(self.template)

    def _package(self, version: int) -> str:
        source = self.folder / f"build-{version}"
        write_model_folder(source, version=version, weights=TRUNK, vocabulary=vocabulary(version))
        index = self.hub.release(pack(source, self.hub.layout.folder), version)
        self.hub.repository.refresh_online()
        self.hub.files = self.hub.repository.files()
        return index

    def _delta(self, file: Path) -> DeltaOffer:
        old, new = (open_package(self.hub.layout, self.index[v]).files[VOCABULARY].digest for v in (1, 2))
        size = encode(self.hub.layout.path(old), self.hub.layout.path(new), file)
        return DeltaOffer(base=old, target=new, delta=self.hub.layout.put(file.read_bytes()), size=size)

    # ---- what the hub says

    def desired(self, version: int, *, delta: bool = False, again: bool = False) -> DesiredModel:
        """`again`: after an update that ended badly, by another rollout."""
        return DesiredModel(
            model="digits",
            version=version,
            index=self.index[version],
            transport="mqtt",
            probation=ProbationTerms(soak_s=0),
            deltas=(self.offer,) if delta else (),
            rollout="again" if again else None,
        )

    def write_stick(self, desired: DesiredModel) -> None:
        """The same on a stick."""
        now, signature = self.hub.clock.now(), self._signature(desired.index)
        write_bundle(
            self.stick,
            zone=self.hub.zone,
            tuf=self.hub.repository.files("sideload", ME.site),
            directive=self.hub.directive(ME, desired),
            blobs=self.hub.layout,
            contents=contents_of(self.hub.layout, desired.index, signature),
            director=self.hub.repository.director,
            created=now,
            expires=now + timedelta(days=30),
        )

    def _signature(self, index: str) -> str:
        targets = json.loads(self.hub.files["model-digits.json"])["signed"]["targets"].values()
        return next(str(t["custom"]["signature"]["digest"]) for t in targets if f"sha256:{t['hashes']['sha256']}" == index)

    # ---- before the first case

    def settle(self) -> None:
        """Bring version 1 to the template, and an adapter; then release version 2.

        All that is imported late is here afterwards, for the forks.
        """
        with self.online(self.home) as components:
            self.hub.send(ME, self.hub.directive(ME, self.desired(1)))
            self.follow(components)
        head = self.home.adapters / "mine" / "head"
        head.parent.mkdir(parents=True)
        head.write_bytes(HEAD)
        base = digest_of(TRUNK)
        assert base == open_package(self.hub.layout, self.index[1]).files[WEIGHTS].digest
        adapter = AdapterSlot(name="mine", file=digest_of(HEAD), base=base)
        edit_slots(self.home.slots, "digits", lambda m: m.replace(adapter=adapter))
        self.index[2] = self._package(2)
        self.offer = self._delta(self.folder / "delta")

    # ---- a spoke's process

    @contextlib.contextmanager
    def online(self, home: SpokeHome, *, off: Mapping[str, Reason] | None = None) -> Iterator[AgentComponents]:
        """An agent on a bus of its own, with the hub at the other end. `off`: variants of version 2 that are off here."""
        self.hub.open()
        bus = self.hub.bus.broker.client(ME.username, topics.spoke_rights(ME, self.hub.zone))  # type: ignore[attr-defined]
        server = FakeServer(home.slots, ManualClock())
        server.behaviour[2] = Behaviour(off=dict(off or {}))
        try:
            with assemble(home, SETTINGS, bus=bus, server=server, inline=True) as components:
                components.agent.begin()
                yield components
                components.agent.end()
        finally:
            self.hub.close()

    def follow(self, components: AgentComponents) -> None:
        """Until the update has ended, and the hub has its signed report of that."""
        _until(lambda: self._ended(components), components.agent.turn)

    def _ended(self, components: AgentComponents) -> bool:
        last = self.hub.reports[ME][-1:]
        said = last and last[0].generation == self.hub.generation and last[0].state in TERMINAL
        return bool(said) and components.agent.controller.idle() and not components.journal.unacknowledged()

    def sideload(self, home: SpokeHome, tell: Callable[[AgentComponents], None] = lambda components: None) -> None:
        """Apply the stick, as `spoke sideload apply` does where no agent runs."""
        server = FakeServer(home.slots, ManualClock())
        with assemble(home, SETTINGS, offline=True, inline=True, server=server) as components:
            tell(components)
            applied = take_in(components, self.stick)
            follow_through(components, applied, SystemClock(), lambda entry: None, SETTINGS.tick_s)


def another_boot() -> None:
    """From here on this process believes that the machine was started anew."""
    store._this_boot = lambda: b"another boot"
    assembling.boot_id = lambda: "another boot"


def _until(done: Callable[[], bool], act: Callable[[], None]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not done():
        if time.monotonic() > deadline:
            raise DoesNotEnd("the update does not end")
        act()

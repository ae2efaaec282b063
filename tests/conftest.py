"""What many tests need: a free port, a hub's certificate authority, a real Mosquitto with mutual TLS."""

import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from provisioning.brokers.mosquitto import Broker
from provisioning.identity.ca import DeviceCA
from provisioning.identity.identity import device_csr
from sync.bus.mqtt import MqttBus
from sync.core.tls import TlsFiles
from sync.core.types import SpokeId
from sync.trust.keys import device_signer, save_signer

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how long an example takes is no property of ours on a busy machine


@pytest.fixture
def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def session_ca(tmp_path_factory: pytest.TempPathFactory) -> DeviceCA:
    return DeviceCA.create(tmp_path_factory.mktemp("ca"), now=datetime.now(UTC))


class BrokerFixture:
    """A broker of the real kind and the certificates to talk to it."""

    def __init__(self, folder: Path, ca: DeviceCA) -> None:
        self.folder, self.ca = folder, ca
        self.spokes: list[tuple[SpokeId, str]] = []
        self.buses: list[MqttBus] = []
        now = datetime.now(UTC)
        self.broker = Broker(folder / "broker", ca.issue_server(folder / "tls", ["localhost", "127.0.0.1"], now=now))
        self.broker.start()

    def hub_tls(self, name: str = "hub") -> TlsFiles:
        if not (self.folder / "tls" / f"{name}.key").exists():
            self.ca.issue_client(self.folder / "tls", name, now=datetime.now(UTC))
        return TlsFiles(*(self.folder / "tls" / file for file in ("ca.crt", f"{name}.crt", f"{name}.key")))

    def spoke_tls(self, spoke: SpokeId) -> TlsFiles:
        folder = self.folder / "spokes" / spoke.username
        files = TlsFiles(self.folder / "tls" / "ca.crt", folder / "device.crt", folder / "device.key")
        if not files.key.exists():
            signer = device_signer()
            save_signer(files.key, signer)
            files.certificate.write_bytes(self.ca.sign_csr(device_csr(signer), spoke, now=datetime.now(UTC)))
        return files

    def bus(self, name: str, tls: TlsFiles | None, **options: object) -> MqttBus:
        options = {"reconnect_s": (0.05, 0.5), **options}
        port = options.pop("port", self.broker.port)
        bus = MqttBus("localhost", port, name, tls, **options)  # type: ignore[arg-type]
        self.buses.append(bus)
        return bus

    def hub(self, name: str = "hub", **options: object) -> MqttBus:
        return self.bus(name, self.hub_tls(name), **options)

    def spoke(self, spoke: SpokeId, zone: str, **options: object) -> MqttBus:
        self.admit(spoke, zone)
        return self.bus(spoke.username, self.spoke_tls(spoke), **options)

    def admit(self, spoke: SpokeId, zone: str) -> None:
        if (spoke, zone) not in self.spokes:
            self.spokes.append((spoke, zone))
            self.broker.allow(self.spokes)

    def restart(self, *, kill: bool = False) -> None:
        if kill:
            assert self.broker._process is not None
            self.broker._process.kill()
        self.broker.stop()
        self.broker.start(self.spokes)

    def close(self) -> None:
        for bus in self.buses:
            bus.close()
        self.broker.stop()


@pytest.fixture
def mosquitto(tmp_path: Path, session_ca: DeviceCA) -> Iterator[BrokerFixture]:
    """A Mosquitto for this test alone."""
    house = BrokerFixture(tmp_path, session_ca)
    yield house
    house.close()


@pytest.fixture(scope="module")
def shared_mosquitto(tmp_path_factory: pytest.TempPathFactory, session_ca: DeviceCA) -> Iterator[BrokerFixture]:
    """A Mosquitto for a whole file, for tests that do not disturb it."""
    house = BrokerFixture(tmp_path_factory.mktemp("mosquitto"), session_ca)
    yield house
    house.close()


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Wait until something becomes true; fails after ten seconds."""
    import time

    def wait(condition: Callable[[], object], seconds: float = 10.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not become true in time"
            time.sleep(0.005)

    return wait

"""What only the real bus has: TLS, refusals, and limits."""

import socket
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from provisioning.identity.ca import DeviceCA
from provisioning.identity.identity import device_csr
from sync.bus import mqtt
from sync.bus.bus import BusDown, Message
from sync.bus.mqtt import MqttBus
from sync.core.tls import TlsFiles, TlsFilesMissing
from sync.core.types import SpokeId
from sync.protocol import topics
from sync.trust.keys import load_signer

pytestmark = pytest.mark.mosquitto
FRANKFURT = SpokeId("frankfurt")


def test_a_broker_that_is_down_is_named_with_its_address(free_port: int) -> None:
    bus = MqttBus("127.0.0.1", free_port, "x")
    with pytest.raises(BusDown, match=f"127.0.0.1:{free_port}"):
        bus.connect(timeout=0.3)


def test_connecting_without_a_timeout_waits_in_the_background(mosquitto: Any) -> None:
    mosquitto.broker.stop()
    bus = mosquitto.hub()
    connected = threading.Event()
    bus.on_connect(connected.set)
    bus.connect(timeout=None)
    assert not bus.connected
    mosquitto.broker.start()
    assert connected.wait(10)


def test_a_client_without_a_certificate_gets_nowhere(shared_mosquitto: Any) -> None:
    bus = MqttBus("localhost", shared_mosquitto.broker.port, "hub")
    with pytest.raises(BusDown):
        bus.connect(timeout=0.5)


def test_a_certificate_of_another_ca_gets_nowhere(shared_mosquitto: Any, tmp_path: Any) -> None:
    stranger = DeviceCA.create(tmp_path / "ca", now=datetime.now(UTC)).issue_client(
        tmp_path / "tls", "hub", now=datetime.now(UTC)
    )
    tls = TlsFiles(shared_mosquitto.hub_tls().ca, stranger.certificate, stranger.key)
    bus = MqttBus("localhost", shared_mosquitto.broker.port, "hub", tls)
    with pytest.raises(BusDown):
        bus.connect(timeout=0.5)


def test_an_expired_device_certificate_gets_nowhere(shared_mosquitto: Any, tmp_path: Any) -> None:
    tls = shared_mosquitto.spoke_tls(FRANKFURT)
    old = shared_mosquitto.ca.sign_csr(
        device_csr(load_signer(tls.key)), FRANKFURT, now=datetime.now(UTC) - timedelta(days=100), life=timedelta(days=90)
    )
    (tmp_path / "old.crt").write_bytes(old)
    bus = MqttBus("localhost", shared_mosquitto.broker.port, "x", TlsFiles(tls.ca, tmp_path / "old.crt", tls.key))
    with pytest.raises(BusDown):
        bus.connect(timeout=0.5)


def test_a_server_that_is_not_the_hub_is_not_believed(shared_mosquitto: Any) -> None:
    """A spoke's certificate is good for clients only: a spoke cannot play the broker."""
    import ssl

    tls = shared_mosquitto.spoke_tls(FRANKFURT)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tls.certificate, tls.key)
    with socket.create_server(("127.0.0.1", 0)) as server:
        heard: list[str] = []

        def serve() -> None:
            peer, _ = server.accept()
            try:
                with context.wrap_socket(peer, server_side=True) as wire:
                    heard.append(str(wire.recv(1)))
            except OSError:
                peer.close()

        thread = threading.Thread(target=serve)
        thread.start()
        bus = MqttBus("localhost", server.getsockname()[1], "hub", shared_mosquitto.hub_tls(), reconnect_s=(30, 60))
        with pytest.raises(BusDown):
            bus.connect(timeout=1.0)
        thread.join(10)
        assert heard in ([], ["b''"])


def test_the_clock_of_a_spoke_does_not_judge_the_hubs_certificate(tmp_path: Any, session_ca: DeviceCA) -> None:
    from provisioning.brokers.mosquitto import Broker

    far = datetime.now(UTC) + timedelta(days=1000)
    broker = Broker(tmp_path / "broker", session_ca.issue_server(tmp_path / "tls", ["localhost"], now=far))
    broker.start()
    bus = MqttBus("localhost", broker.port, "hub", session_ca.issue_client(tmp_path / "tls", now=datetime.now(UTC)))
    bus.connect()
    bus.close()
    broker.stop()


def test_a_missing_key_is_named() -> None:
    from pathlib import Path

    nowhere = Path("/nonexistent")
    with pytest.raises(TlsFilesMissing, match="/nonexistent/key"):
        MqttBus("localhost", 1, "x", TlsFiles(nowhere / "ca", nowhere / "crt", nowhere / "key"))


def test_the_client_id_is_the_certificates_name_so_nobody_is_pushed_off(mosquitto: Any) -> None:
    frankfurt = mosquitto.spoke(FRANKFURT, "eu")
    frankfurt.connect()
    dubai = SpokeId("dubai")
    mosquitto.admit(dubai, "me")
    thief = mosquitto.bus("frankfurt.main", mosquitto.spoke_tls(dubai))
    thief.connect()
    frankfurt.publish(Message(topics.report(FRANKFURT), b"x"))
    assert frankfurt.flush(5)
    assert frankfurt.connected


def test_an_unacknowledged_queue_is_bounded(free_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "MAX_UNACKNOWLEDGED", 3)
    bus = MqttBus("127.0.0.1", free_port, "x")
    for _ in range(3):
        bus.publish(Message("ss/v1/x", b""))

    def one_more() -> None:
        with pytest.raises(BusDown, match="closed"):
            bus.publish(Message("ss/v1/x", b""))

    fourth = threading.Thread(target=one_more)
    fourth.start()
    fourth.join(0.3)
    assert fourth.is_alive(), "the fourth waits"
    bus.close()
    fourth.join(5)
    assert not fourth.is_alive()


def test_a_revoked_spoke_is_mute_at_once(mosquitto: Any, eventually: Any) -> None:
    hub, spoke = mosquitto.hub(), mosquitto.spoke(FRANKFURT, "eu")
    heard: list[Message] = []
    hub.connect()
    spoke.connect()
    hub.subscribe("ss/v1/site/#", heard.append)
    spoke.publish(Message(topics.report(FRANKFURT), b"before"))
    eventually(lambda: len(heard) == 1)
    mosquitto.broker.allow([])
    spoke.publish(Message(topics.report(FRANKFURT), b"after"))
    spoke.flush(2)
    hub.publish(Message("ss/v1/site/x/y/report", b"end"))
    eventually(lambda: len(heard) == 2)
    assert heard[-1].payload == b"end"

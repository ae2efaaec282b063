"""Mosquitto as the hub runs it: started, adopted, replaced, refused."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from provisioning.brokers.access_list import HUB_USERS, render_acl
from provisioning.brokers.mosquitto import Broker, BrokerFailed, BrokerMissing, render_config
from provisioning.identity.ca import DeviceCA
from sync.bus.bus import BusDown, Message
from sync.bus.mqtt import MqttBus
from sync.core.tls import TlsFiles
from sync.core.types import SpokeId
from sync.protocol import topics

pytestmark = pytest.mark.mosquitto
FRANKFURT = SpokeId("frankfurt")


@pytest.fixture
def tls(tmp_path: Path, session_ca: DeviceCA) -> TlsFiles:
    return session_ca.issue_server(tmp_path / "tls", ["localhost"], now=datetime.now(UTC))


@pytest.fixture
def broker(tmp_path: Path, tls: TlsFiles) -> Iterator[Broker]:
    broker = Broker(tmp_path / "broker", tls)
    yield broker
    broker.stop()


def test_it_starts_on_a_free_port_and_stops(broker: Broker) -> None:
    broker.start()
    assert broker.port > 0
    assert broker.alive()
    broker.stop()
    assert not broker.alive()
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", broker.port), timeout=1)


def test_it_comes_back_on_the_port_it_had(broker: Broker, tmp_path: Path, tls: TlsFiles) -> None:
    broker.start()
    broker.stop()
    again = Broker(tmp_path / "broker", tls)
    again.start()
    assert again.port == broker.port
    again.stop()


def test_a_taken_port_is_named(broker: Broker, tmp_path: Path, tls: TlsFiles) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        unlucky = Broker(tmp_path / "unlucky", tls, port=port)
        with pytest.raises(BrokerFailed, match=str(port)):
            unlucky.start()
        assert not unlucky.alive()


def test_a_machine_without_mosquitto_is_told_what_to_install(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("provisioning.brokers.mosquitto.os.access", lambda *args: False)
    with pytest.raises(BrokerMissing) as refused:
        broker.start()
    assert "apt-get install mosquitto" in refused.value.hint


def test_bad_certificates_are_reported_in_mosquittos_words(tmp_path: Path, tls: TlsFiles) -> None:
    broker = Broker(tmp_path / "broker", TlsFiles(tls.ca, tmp_path / "none.crt", tls.key))
    with pytest.raises(BrokerFailed, match="Error"):
        broker.start()


def test_a_broker_whose_hub_died_is_adopted_with_its_clients(
    broker: Broker, tmp_path: Path, tls: TlsFiles, session_ca: DeviceCA
) -> None:
    broker.start()
    bus = MqttBus("localhost", broker.port, "hub", session_ca.issue_client(tmp_path / "tls", now=datetime.now(UTC)))
    bus.connect()
    dropped: list[bool] = []
    next_hub = Broker(tmp_path / "broker", tls)
    bus.on_connect(lambda: dropped.append(True))
    next_hub.start([(FRANKFURT, "eu")])
    assert next_hub.port == broker.port
    assert next_hub.alive()
    bus.publish(Message("ss/v1/x", b""))
    assert bus.flush(5)
    assert not dropped
    bus.close()
    next_hub.stop()
    assert not broker.alive()


def test_a_broker_with_another_configuration_is_replaced(broker: Broker, tmp_path: Path, tls: TlsFiles, free_port: int) -> None:
    broker.start()
    next_hub = Broker(tmp_path / "broker", tls, port=free_port)
    next_hub.start()
    assert not broker.alive()
    assert next_hub.alive()
    next_hub.stop()


def test_a_pid_file_that_names_somebody_else_hurts_nobody(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "mosquitto.pid").write_text(str(os.getpid()))
    broker.start()
    assert broker.alive()


def test_a_broker_that_was_killed_is_seen(broker: Broker, eventually: Callable[..., None]) -> None:
    broker.start()
    assert broker._pid is not None
    os.kill(broker._pid, signal.SIGKILL)
    eventually(lambda: not broker.alive())
    broker.start()
    assert broker.alive()


def test_retained_messages_outlive_a_clean_restart(broker: Broker, tmp_path: Path, session_ca: DeviceCA) -> None:
    broker.start()
    tls = session_ca.issue_client(tmp_path / "tls", now=datetime.now(UTC))
    bus = MqttBus("localhost", broker.port, "hub", tls)
    bus.connect()
    bus.publish(Message(topics.desired(FRANKFURT), b"directive", retain=True))
    assert bus.flush(5)
    bus.close()
    broker.stop()
    broker.start()
    heard: list[Message] = []
    later = MqttBus("localhost", broker.port, "hub", tls)
    later.subscribe(topics.desired(FRANKFURT), heard.append)
    later.connect()
    later.publish(Message("ss/v1/x", b""))
    later.flush(5)
    later.close()
    assert [message.payload for message in heard] == [b"directive"]


def test_a_revoked_certificate_is_not_let_in_after_a_restart(tmp_path: Path, tls: TlsFiles) -> None:
    now = datetime.now(UTC)
    ca = DeviceCA.create(tmp_path / "own-ca", now=now)
    client = ca.issue_client(tmp_path / "own-tls", now=now)
    ca.revoke(client.certificate.read_bytes(), now=now)
    broker = Broker(tmp_path / "own", ca.issue_server(tmp_path / "own-tls", ["localhost"], now=now), crl=ca.crl_path)
    broker.start()
    with pytest.raises(BusDown):
        MqttBus("localhost", broker.port, "hub", client).connect(timeout=0.5)
    other = MqttBus("localhost", broker.port, "hub-1", ca.issue_client(tmp_path / "own-tls", "hub-1", now=now))
    other.connect()
    other.close()
    broker.stop()


def test_the_access_list_names_each_right_once_and_nothing_else() -> None:
    text = render_acl([(FRANKFURT, "eu"), (SpokeId("dubai", "till-2"), "me")])
    sections = {part.splitlines()[0]: part.splitlines()[1:] for part in text.strip().split("\n\n")}
    assert list(sections) == [*(f"user {name}" for name in HUB_USERS), "user dubai.till-2", "user frankfurt.main"]
    assert sections["user frankfurt.main"] == [
        "topic read ss/v1/zone/eu/tuf/+",
        "topic read ss/v1/zone/eu/blob/+/+",
        "topic write ss/v1/zone/eu/blob/+/want",
        "topic read ss/v1/zone/eu/question/+",
        "topic read ss/v1/zone/eu/cohort/+",
        "topic read ss/v1/site/frankfurt/main/desired",
        "topic read ss/v1/site/frankfurt/main/time",
        "topic read ss/v1/site/frankfurt/main/receipt",
        "topic write ss/v1/site/frankfurt/main/status",
        "topic write ss/v1/site/frankfurt/main/report",
        "topic write ss/v1/site/frankfurt/main/egress/+",
    ]


def test_the_configuration_lets_nobody_in_without_a_certificate(tmp_path: Path, tls: TlsFiles) -> None:
    lines = render_config(tmp_path, tls, host="0.0.0.0", port=8883).splitlines()
    assert {"allow_anonymous false", "require_certificate true", "use_identity_as_username true", "tls_version tlsv1.2"} < set(
        lines
    )
    assert [line for line in lines if line.startswith("listener")] == ["listener 8883 0.0.0.0"]

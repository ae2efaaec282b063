"""`hub relay` beside a running hub; then a Mosquitto with the folder it wrote, and a spoke of the region on it."""

import getpass
import subprocess

import pytest

from hub.services.enrolments import admit_spoke, invite_spoke
from provisioning.brokers.mosquitto import _program
from provisioning.identity.enrol import begin, finish
from sync.bus.bus import Message
from sync.bus.mqtt import MqttBus
from sync.core.types import SpokeId
from sync.protocol import topics

BERLIN = SpokeId("berlin")


@pytest.fixture
def spoke(server, tmp_path):
    code = invite_spoke(server.hub, BERLIN, "eu", "gdpr", "test")
    return finish(tmp_path / "berlin", admit_spoke(server.hub, begin(tmp_path / "berlin", code)))


@pytest.mark.mosquitto
def test_a_region_hears_its_hub_through_the_folder(server, line, spoke, tmp_path, free_port, eventually):
    folder = tmp_path / "relay"
    port, hosts = str(free_port), ("--host", "localhost")
    made = line.ok("relay", "west", "--site", "berlin", *hosts, "--port", port, "--place", folder, "--out", folder)
    assert {"mosquitto.conf", "acl", "crl.pem", "tls/relay-west.key", "tls/server.crt"} <= set(made["files"])
    server.hub.wake.set()
    eventually(lambda: "relay-west" in (server.broker.folder / "acl").read_text())
    with (folder / "mosquitto.conf").open("a") as file:
        file.write(f"user {getpass.getuser()}\n")  # the test's folder is nobody else's
    relay = subprocess.Popen([_program(), "-c", str(folder / "mosquitto.conf")], stderr=subprocess.DEVNULL)
    bus = MqttBus("localhost", free_port, BERLIN.username, spoke.tls, reconnect_s=(0.05, 0.2))
    try:
        heard = set()
        bus.subscribe(topics.tuf("eu", "+"), lambda m: heard.add(m.topic))
        bus.subscribe(topics.desired(BERLIN), lambda m: heard.add(m.topic))
        bus.connect(timeout=15)
        eventually(lambda: {topics.tuf("eu", "timestamp.json"), topics.desired(BERLIN)} <= heard)
        before = server.ingest.taken
        bus.publish(Message(topics.report(BERLIN), b"nonsense", qos=1))
        eventually(lambda: server.ingest.taken > before)
    finally:
        bus.close()
        relay.terminate()
        relay.wait()


@pytest.mark.mosquitto
def test_a_relay_for_nobody_is_refused(server, line, tmp_path):
    refused = ("--host", "localhost", "--out", tmp_path / "relay")
    assert line("relay", "west", "--site", "nowhere", *refused)[0] != 0
    assert line("relay", "West!", "--site", "berlin", *refused)[0] != 0
    assert not (tmp_path / "relay").exists()

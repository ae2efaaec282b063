"""A real hub over HTTPS and a real Mosquitto: up, publish, enrol, roll out, restart, and what is refused."""

import json
import socket
import threading
from datetime import UTC, datetime

import pytest

from hub.app.hub_process import HubServer, PortTaken
from hub.app.lock import HubRunning
from hub.config.settings import HubSettings
from provisioning.identity.enrol import begin, finish
from provisioning.identity.online import enrol_online
from sync.bus.bus import BusDown, Message
from sync.bus.mqtt import MqttBus
from sync.core.types import Reason, State
from sync.protocol import topics
from sync.protocol.messages import Directive, Report, Serving, Status
from sync.trust.dsse import seal, unseal
from tests.samples.model_folder import write_model_folder

PLAN = """
apiVersion: spokeshave/v1
kind: Rollout
metadata: {name: digits-1}
spec: {model: digits@1, rings: [{name: all, sites: [dubai]}]}
"""


class Puppet:
    """A spoke on the real bus that says what it is told to say."""

    def __init__(self, identity):
        self.me = identity
        self.bus = MqttBus(
            identity.broker_host, identity.broker_port, identity.spoke.username, identity.tls, reconnect_s=(0.05, 0.5)
        )
        self.directives, self.told = [], threading.Event()
        self.bus.subscribe(topics.desired(identity.spoke), self._hear)
        self.bus.connect(timeout=15)
        status = Status(site=self.me.spoke.site, spoke=self.me.spoke.spoke, online=True, time=datetime.now(UTC))
        self.bus.publish(Message(topics.status(self.me.spoke), status.canonical(), retain=True))

    def _hear(self, message):
        self.directives.append(message.payload)
        self.told.set()

    def wanted(self, key):
        if not self.directives:
            return None
        return [(m.model, m.version, m.index) for m in unseal(self.directives[-1], [key], Directive).models]

    def commits(self, model, version, index, file):
        serving = Serving(model=model, version=version, index=index, file=file, variant="onnx-int8", engine="onnxruntime")
        report = Report(
            site=self.me.spoke.site, spoke=self.me.spoke.spoke, sequence=1, nonce="0" * 32, time=datetime.now(UTC), generation=2,
            model=model, version=version, index=index, previous=State.PROBATION, state=State.COMMITTED, reason=Reason.NONE,
            serving=(serving,),
        )  # fmt: skip
        self.bus.publish(Message(topics.report(self.me.spoke), seal(report, self.me.signer())))


def weights(folder):
    from model_formats.core.types import digest_of_file

    return digest_of_file(folder / "variants" / "onnx-int8" / "model.onnx")


@pytest.mark.mosquitto
def test_publish_enrol_roll_out_and_commit_over_the_real_wire(server, line, tmp_path, eventually):
    folder = write_model_folder(tmp_path / "digits")
    published = line.ok("model", "publish", folder)
    assert published["complete"]
    assert line.ok("model", "show", "digits@1")["index"] == published["index"]
    assert line.ok("model", "verify", "digits@1")["index"] == published["index"]
    code = line.ok("spoke", "invite", "dubai", "--zone", "me", "--regime", "ae-pdpl")["code"]
    puppet = Puppet(enrol_online(tmp_path / "dubai", server.address.url, code))
    eventually(lambda: line.ok("spoke", "list")[0]["online"])
    (tmp_path / "plan.yaml").write_text(PLAN)
    assert line.ok("rollout", "apply", tmp_path / "plan.yaml", "--dry-run")["rings"] == {"all": ["dubai/main"]}
    line.ok("rollout", "apply", tmp_path / "plan.yaml")
    key = server.hub.repository.director.public_key
    eventually(lambda: puppet.wanted(key) == [("digits", 1, published["index"])])
    puppet.commits("digits", 1, published["index"], weights(folder))
    eventually(lambda: line.ok("rollout", "show", "digits-1")["state"] == "completed")
    assert line.ok("spoke", "show", "dubai")["serving"][0]["version"] == 1
    assert line.ok("audit", "verify")["ok"]
    line.ok("spoke", "revoke", "dubai", "--yes")
    eventually(lambda: _cut_off(puppet))
    puppet.bus.close()


def _cut_off(puppet):
    """A revoked spoke hears nothing more; its own words go nowhere either."""
    before = len(puppet.directives)
    try:
        puppet.bus.publish(Message(topics.status(puppet.me.spoke), b"{}", qos=1))
        puppet.bus.flush(1)
    except BusDown:
        return True
    return before == len(puppet.directives)


@pytest.mark.mosquitto
def test_a_restart_keeps_ports_tokens_and_spokes(home, line, tmp_path, eventually):
    with HubServer(home, HubSettings(tick_s=0.2)) as server:
        first = server.address
        code = line.ok("spoke", "invite", "dubai", "--zone", "me", "--regime", "ae-pdpl")["code"]
        identity = enrol_online(tmp_path / "dubai", first.url, code)
    assert not home.address.exists()
    status, _, error = line("spoke", "list")
    assert (status, json.loads(error)["error"]) == (5, "hub_away")
    with HubServer(home, HubSettings(tick_s=0.2)) as server:
        assert server.address == first
        puppet = Puppet(identity)
        eventually(lambda: line.ok("spoke", "list")[0]["online"])
        assert puppet.told.wait(10)
        puppet.bus.close()


@pytest.mark.mosquitto
def test_a_second_hub_on_the_same_folder_is_refused_and_the_first_goes_on(server, home, line):
    with pytest.raises(HubRunning, match="already runs"):
        HubServer(home, HubSettings()).start()
    assert line.ok("spoke", "list") == []


def test_a_taken_port_is_named_and_nothing_is_left_running(home, line):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = HubServer(home, HubSettings(https_port=port))
        with pytest.raises(PortTaken, match=str(port)):
            server.start()
    assert not server.broker.alive()
    assert not home.address.exists()


@pytest.mark.mosquitto
def test_the_broker_is_started_again_when_it_dies(server, eventually):
    pid = server.broker._pid
    server.broker._process.kill()
    server.broker._process.wait()
    server.hub.wake.set()
    eventually(lambda: server.broker.alive() and server.broker._pid != pid and server.hub.bus.connected, 20)


@pytest.mark.mosquitto
def test_a_spoke_without_a_network_is_admitted_by_files_and_supplied_by_a_bundle(server, line, tmp_path):
    published = line.ok("model", "publish", write_model_folder(tmp_path / "digits"))
    code = line.ok("spoke", "invite", "clinic", "--zone", "me", "--regime", "ae-pdpl")["code"]
    (tmp_path / "request.json").write_bytes(begin(tmp_path / "clinic", code).canonical())
    line.ok("spoke", "admit", tmp_path / "request.json", tmp_path / "grant.json")
    from provisioning.identity.enrol import EnrolmentGrant

    identity = finish(tmp_path / "clinic", EnrolmentGrant.parse((tmp_path / "grant.json").read_bytes()))
    exported = line.ok("bundle", "export", "--site", "clinic", "--model", "digits@1", "--out", tmp_path / "stick")
    assert exported["bytes"] == (tmp_path / "stick").stat().st_size
    applied = apply(identity, tmp_path)
    assert [(m.model, m.version, m.index) for m in applied.directive.models] == [("digits", 1, published["index"])]
    assert import_receipts(identity, line, tmp_path) == {"serving": ["digits@1"], "reports": 1}
    assert line.ok("spoke", "show", "clinic")["serving"][0]["version"] == 1
    status, _, error = line("receipts", "import", tmp_path / "receipts")
    assert (status, json.loads(error)["error"]) == (4, "receipts_known")
    carry(identity, tmp_path, 2, egress_chain=("1 sha256:" + "1" * 64, "2 sha256:" + "2" * 64))
    assert line.ok("receipts", "import", tmp_path / "receipts")["refused"] == []
    carry(identity, tmp_path, 3, egress_chain=("1 sha256:" + "f" * 64,))
    assert "entry 1 of the egress log" in line.ok("receipts", "import", tmp_path / "receipts")["refused"][0]


def apply(identity, folder):
    from sync.core.clock import SystemClock
    from sync.sideload.bundle import apply_bundle
    from sync.store import BlobStore
    from sync.trust.client import TrustStore

    trust = TrustStore(folder / "trust", SystemClock(), identity.tuf_root, site=identity.spoke.site)
    return apply_bundle(folder / "stick", me=identity.spoke, zone=identity.zone, store=BlobStore(folder / "store"), trust=trust)


def carry(identity, folder, number, **said):
    from sync.sideload.receipts import Receipts, write_receipts

    me = {"site": identity.spoke.site, "spoke": identity.spoke.spoke}
    receipts = Receipts(**me, created=datetime.now(UTC), **{"number": number, "generation": 2, **said})
    write_receipts(folder / "receipts", receipts, identity.signer())


def import_receipts(identity, line, folder):
    from sync.sideload.receipts import Receipt

    version = line.ok("model", "show", "digits@1")
    file = weights(folder / "digits")
    serving = (Serving(model="digits", version=1, index=version["index"], file=file, variant="onnx-int8", engine="onnxruntime"),)
    me = {"site": identity.spoke.site, "spoke": identity.spoke.spoke}
    report = Report(
        **me, sequence=1, nonce="1" * 32, time=datetime.now(UTC), generation=2, model="digits", version=1, index=version["index"],
        previous=State.PROBATION, state=State.COMMITTED, reason=Reason.NONE, serving=serving,
    )  # fmt: skip
    message = Receipt(kind="report", text=seal(report, identity.signer()).decode())
    carry(identity, folder, 1, serving=serving, messages=(message,))
    told = line.ok("receipts", "import", folder / "receipts")
    return {k: told[k] for k in ("serving", "reports")}


def test_the_doctor_says_what_to_do(home, line):
    status, findings, _ = line("doctor")
    by_name = {f["check"]: f for f in findings}
    assert status == 1
    assert by_name["database"]["ok"]
    assert by_name["private files"]["ok"]
    assert "hub up" in by_name["running"]["advice"]
    (home.keys / "targets.pem").chmod(0o644)
    assert "targets.pem" in {f["check"]: f for f in line("doctor")[1]}["private files"]["found"]


def test_init_refuses_a_folder_that_holds_a_hub(home, line):
    before = sorted((p, p.stat().st_mtime_ns) for p in home.root.rglob("*"))
    status, _, error = line("init")
    assert (status, json.loads(error)["error"]) == (2, "hub_home")
    assert sorted((p, p.stat().st_mtime_ns) for p in home.root.rglob("*")) == before

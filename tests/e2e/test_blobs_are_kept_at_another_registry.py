"""A hub whose blobs lie at another registry: build, publish there, and a spoke gets the version over MQTT and over HTTPS."""

import json
import tarfile
import threading
from contextlib import closing

import pytest

from hub.app.hub_process import HubServer
from hub.cli import group
from hub.config.home import HubHome
from hub.config.settings import HubSettings, load_settings
from hub.context import found
from hub.registry.push_pull import pull
from hub.registry.remote_backend import ExternalRegistry
from model_formats.core.console import run
from model_formats.package import ImageLayout, missing, open_package
from model_formats.package.oci import SIGNATURE, Descriptor
from provisioning.identity.online import enrol_online, hub_client
from spoke_agent.update.interfaces import FetchRequest
from spoke_agent.update.transport import HttpsTransport, MqttTransport
from sync.bus.mqtt import MqttBus
from sync.core.clock import SystemClock
from sync.protocol.messages import DesiredModel
from sync.store import BlobStore
from tests.samples.model_folder import write_model_folder
from tests.samples.registries import another_hub, distribution, needs_distribution

PLACES = [
    pytest.param(distribution, id="distribution", marks=needs_distribution),
    pytest.param(another_hub, id="another-hub"),
]


pytestmark = [pytest.mark.mosquitto, pytest.mark.xdist_group("another-registry")]


@pytest.fixture(scope="module", params=PLACES)
def running(request, tmp_path_factory):
    """A registry that runs as a process of its own, for the whole file."""
    with request.param(tmp_path_factory.mktemp("external") / "registry") as told:
        yield told


@pytest.fixture
def place(running, tmp_path):
    """`registry_*` settings for it, under a prefix of the test's own."""
    return {**running, "registry_prefix": f"team/{tmp_path.name.replace('_', '-').lower()[:40].strip('-')}"}


class World:
    """A running hub with those settings in its hub.toml, and the command line against it."""

    def __init__(self, folder, told, capfd):
        self.home, self._capfd = HubHome(folder / "hub"), capfd
        found(self.home.root, HubSettings())
        self.use(told)

    def use(self, told):
        lines = [f"{name} = {json.dumps(value)}" for name, value in told.items()]
        self.home.settings.write_text("\n".join(lines))
        self.server = HubServer(self.home, load_settings(self.home.root, tick_s=0.2))

    def line(self, *args):
        self._capfd.readouterr()
        status = run(group, ["--home", str(self.home.root), *map(str, args), "--json"])
        told = self._capfd.readouterr()
        assert status == 0, told.err
        return json.loads(told.out)

    def empty_cache(self):
        for file in self.server.hub.registry.contents.folder.iterdir():
            file.unlink()


@pytest.fixture
def world(place, tmp_path, capfd):
    made = World(tmp_path, place, capfd)
    with made.server:
        yield made


def stage(road, index, store):
    """As a spoke stages a version: what is missing, until nothing is; then every byte is checked."""
    desired = DesiredModel(model="digits", version=1, index=index["index"])
    while wanted := missing(store, index["index"], index["size"], "onnx-int8"):
        for blob in wanted:
            road.fetch(FetchRequest(desired, Descriptor(blob.digest, blob.size, blob.media_type), store, threading.Event()))
    open_package(store, index["index"]).check("onnx-int8")


def test_build_publish_there_and_a_spoke_gets_it_by_either_road(world, place, tmp_path):
    published = world.line("model", "publish", write_model_folder(tmp_path / "digits"))
    assert published["complete"]
    shown = world.line("model", "show", "digits@1")
    identity = _enrolled(world, tmp_path)

    registry = ExternalRegistry.of(HubSettings(**place))
    with registry.client:  # what any other tool sees there
        copy = ImageLayout(tmp_path / "copy")
        assert pull(copy, registry.url, registry.client, f"{place['registry_prefix']}/digits", "1") == published["index"]
        assert len(copy.referrers(published["index"], SIGNATURE)) == 1

    world.empty_cache()
    with closing(_bus(identity)) as bus:
        stage(MqttTransport(bus, identity.zone, identity.spoke), shown, BlobStore(tmp_path / "by-mqtt"))
    world.empty_cache()
    with hub_client(identity, SystemClock()) as client:
        stage(HttpsTransport(lambda: client), shown, BlobStore(tmp_path / "by-https"))
    world.empty_cache()
    exported = world.line("bundle", "export", "--site", "dubai", "--model", "digits@1", "--out", tmp_path / "stick")
    assert exported["bytes"] > 900_000
    assert world.line("model", "verify", "digits@1")["index"] == published["index"]


def test_deltas_go_there_too_and_doctor_collector_and_backup_know_of_it(world, place, tmp_path):
    weights = bytearray(write_model_folder(tmp_path / "one").joinpath("variants/onnx-int8/model.onnx").read_bytes())
    world.line("model", "publish", tmp_path / "one")
    weights[1000:1100] = bytes(100)
    second = world.line("model", "publish", write_model_folder(tmp_path / "two", version=2, weights=bytes(weights)))
    assert second["deltas"]
    zone_blobs, size = world.server.hub.registry, second["deltas"][0]["bytes"]
    world.empty_cache()
    from hub.store.versions import deltas_to
    from model_formats.core.types import ModelRef

    with world.server.hub.database.read() as db:
        (offer,) = deltas_to(db, ModelRef("digits", 2))
    assert zone_blobs.path(offer.delta).stat().st_size == size
    status, finding = _doctor(world)
    assert "answers" in finding["found"]
    assert status == 1  # root keys lie on this machine
    kept = world.line("registry", "show")
    assert (kept["kept_at"], kept["blobs_here"]) == (place["registry_url"], 1)
    assert kept["blobs"] > 10
    assert world.line("registry", "collect", "--grace-hours", 0)["manifests"] == 0
    world.line("backup", tmp_path / "backup.tar")
    with tarfile.open(tmp_path / "backup.tar") as tar:
        names = tar.getnames()
    assert not [name for name in names if name.startswith("registry/blobs/sha256/")]
    assert len([name for name in names if name.startswith("registry/origins/")]) == kept["blobs"]


@needs_distribution
def test_a_version_from_before_the_setting_is_served_and_comes_over_when_it_is_published_again(tmp_path, capfd):
    world, folder = World(tmp_path, {}, capfd), write_model_folder(tmp_path / "digits")
    with world.server:
        first = world.line("model", "publish", folder)
    with distribution(tmp_path / "external") as told:
        world.use(told)
        registry = ExternalRegistry.of(HubSettings(**told))
        with world.server, registry.client:
            assert world.line("model", "verify", "digits@1")["index"] == first["index"]
            again = world.line("model", "publish", folder)
            assert (again["index"], again["signature"]) == (first["index"], first["signature"])
            assert len(world.line("model", "list")) == 1
            pull(ImageLayout(tmp_path / "copy"), registry.url, registry.client, "spokeshave/digits", "1")


def _doctor(world):
    world._capfd.readouterr()
    status = run(group, ["--home", str(world.home.root), "doctor", "--json"])
    findings = json.loads(world._capfd.readouterr().out)
    return status, next(f for f in findings if f["check"] == "registry")


def test_a_registry_that_is_away_is_told_to_whoever_publishes(tmp_path, capfd):
    world = World(tmp_path, {"registry_url": "http://127.0.0.1:9"}, capfd)
    folder = write_model_folder(tmp_path / "digits")
    with world.server:
        capfd.readouterr()
        assert run(group, ["--home", str(world.home.root), "model", "publish", str(folder), "--json"]) == 5
        told = json.loads(capfd.readouterr().err.strip().splitlines()[-1])
        assert told["error"] == "registry_down"
        assert "127.0.0.1:9" in told["message"]
        _, finding = _doctor(world)
        assert not finding["ok"]
        assert "does not answer" in finding["found"]


def _enrolled(world, folder):
    code = world.line("spoke", "invite", "dubai", "--zone", "me", "--regime", "ae-pdpl")["code"]
    return enrol_online(folder / "dubai", world.server.address.url, code)


def _bus(identity):
    bus = MqttBus(identity.broker_host, identity.broker_port, identity.spoke.username, identity.tls, reconnect_s=(0.05, 0.5))
    bus.connect(timeout=15)
    return bus

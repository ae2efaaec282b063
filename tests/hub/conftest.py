"""A founded hub with a clock that is turned by hand, spokes that can sign, and released packages."""

import shutil
from datetime import UTC, datetime

import pytest

from hub.app.asgi import create_app
from hub.config.settings import HubSettings
from hub.context import HubContext, found
from hub.services.enrolments import admit_spoke, invite_spoke
from hub.services.ingest import take_report, take_status
from hub.services.releases import ReleaseRequest, accept, add_family, propose_release
from model_formats.core.types import ModelRef
from model_formats.package import open_package
from model_formats.signing.signature import KeySigner, sign_package
from provisioning.identity.enrol import HubAddress, begin, finish
from sync.core.clock import ManualClock
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import Report, Serving, Status, UpdateEvidence
from sync.trust.dsse import seal
from sync.trust.keys import load_signer, role_signer, save_signer
from sync.trust.metadata import add_signature
from tests.samples.model_folder import packed


class House:
    """A hub and what goes on around it."""

    def __init__(self, folder, settings, clock, founded):
        self.folder, self.clock = folder, clock
        shutil.copytree(founded, folder / "hub")
        self.hub = HubContext.open(folder / "hub", settings, clock)
        self.hub.address = HubAddress(url="https://localhost:1", broker_host="localhost", broker_port=2)
        self.publisher = KeySigner.generate()
        self.spokes = {}

    def enrol(self, name, zone="me", regime="ae-pdpl"):
        spoke = SpokeId.parse(name)
        code = invite_spoke(self.hub, spoke, zone, regime, "test")
        home = self.folder / "spokes" / spoke.username
        self.spokes[spoke] = Device(self, finish(home, admit_spoke(self.hub, begin(home, code))))
        return self.spokes[spoke]

    def approver(self, model="digits"):
        path = self.hub.home.keys / f"model-{model}.pem"
        if not path.exists():
            save_signer(path, role_signer())
            proposal = add_family(self.hub, model, [load_signer(path).public_key], 1, "test")
            self.sign(proposal, "targets")
            (first,) = self.hub.repository.pending()
            assert self.sign(first, f"model-{model}").complete
        return path

    def sign(self, proposal, key):
        assert not proposal.complete
        return accept(
            self.hub, proposal.role, add_signature(proposal.data, load_signer(self.hub.home.keys / f"{key}.pem")), "test"
        )

    def push(self, version=1, model="digits", name="sample", **kwargs):
        """Into the registry, by files; returns index and signature."""
        layout, index = packed(self.folder / f"{name}-{model}-{version}", model=model, version=version, **kwargs)
        for blob in (layout.folder / "blobs" / "sha256").iterdir():
            self.hub.registry.put_blob(model, blob.read_bytes())
        signature = self.hub.registry.put_blob(model, sign_package(layout, index, self.publisher))
        return index, signature

    def release(self, version=1, model="digits", fallback=(), zones=(), **kwargs):
        self.approver(model)
        index, signature = self.push(version, model, **kwargs)
        request = ReleaseRequest(ModelRef(model, version), index, signature, self.publisher.policy, zones, fallback)
        assert self.sign(propose_release(self.hub, request, "test"), f"model-{model}").complete
        return index


class Device:
    """A spoke that says what it is told to say, signed with its real key."""

    def __init__(self, house, identity):
        self.house, self.identity, self.sequence, self.serving = house, identity, 0, ()

    @property
    def spoke(self):
        return self.identity.spoke

    def status(self, *, online=True):
        status = Status(site=self.spoke.site, spoke=self.spoke.spoke, online=online, time=self.house.clock.now())
        take_status(self.house.hub, self.spoke, status.canonical())

    def serves(self, index, version=1, model="digits", variant="onnx-int8", **way):
        file = open_package(self.house.hub.registry, index).path(f"variants/{variant}/model.onnx")
        told = {"model": model, "version": version, "index": index, "file": f"sha256:{file.name}", "variant": variant}
        self.serving = (Serving(**told, engine="onnxruntime", **way),)

    def report(self, index, version=1, state=State.COMMITTED, reason=Reason.NONE, *, generation=99, **evidence):
        return take_report(self.house.hub, self.spoke, self.sealed(index, version, state, reason, generation, **evidence))

    def sealed(self, index, version=1, state=State.COMMITTED, reason=Reason.NONE, generation=99, **evidence):
        self.sequence += 1
        report = Report(
            site=self.spoke.site, spoke=self.spoke.spoke, sequence=self.sequence, nonce=f"{self.sequence:032x}",
            time=self.house.clock.now().replace(microsecond=0), generation=generation, model="digits", version=version,
            index=index, previous=State.PROBATION, state=state, reason=reason, serving=self.serving,
            evidence=UpdateEvidence(**evidence),
        )  # fmt: skip
        return seal(report, self.identity.signer())

    def commits(self, index, version=1, **evidence):
        self.serves(index, version)
        self.report(index, version, **evidence)


START = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture
def clock():
    return ManualClock(START)


@pytest.fixture(scope="session")
def founded(tmp_path_factory):
    """A hub that was just founded; every test gets a copy, since founding one anew is twenty times as slow."""
    home = tmp_path_factory.mktemp("founded") / "hub"
    found(home, HubSettings(), ManualClock(START))
    return home


@pytest.fixture
def house(tmp_path, clock, founded):
    made = House(tmp_path, HubSettings(), clock, founded)
    yield made
    made.hub.close()


@pytest.fixture
def app(house):
    return create_app(house.hub)

"""A spoke in an empty network namespace: enrolled by files, models by bundle, receipts back. Only unix sockets are opened."""

import json
import re
import shutil
import subprocess
import sys
from datetime import timedelta

import pytest

from model_formats.package import open_package
from spoke_agent.daemon.sideload import follow_through, take_in
from spoke_agent.daemon.wiring import assemble
from spoke_agent.outbox.egress_log import EgressLog
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettings
from spoke_agent.site.slots import read_slots
from spoke_agent.update.journal import Journal
from sync.bus.memory import MemoryBroker
from sync.core.clock import ManualClock, SystemClock
from sync.core.types import SpokeId, State
from sync.protocol.messages import DesiredModel, ProbationTerms
from sync.sideload.bundle import contents_of, read_receipts, write_bundle
from sync.trust.client import TrustStore
from sync.trust.keys import key_of_pem
from sync.trust.verifier import verify_report
from tests.spoke_agent.daemon.smallhub import SmallHub
from tests.spoke_agent.fakes import FakeServer
from tests.spoke_agent.server.sites import Site

ME = SpokeId("clinic")


class Clinic:
    """A hub that writes sticks, and a home that never sees a network."""

    def __init__(self, folder):
        self.folder = folder
        self.hub = SmallHub(folder / "hub", MemoryBroker().client("hub"))
        self.hub.open()
        self.home = SpokeHome(folder / "s")
        self.hub.enrol(self.home.root, "clinic")
        (self.home.root / "spoke.toml").write_text("tick_s = 0.02\n")
        self.index = {}

    def stick(self, version, *, spoil=None, generation=None, encrypt=False):
        site = Site(self.hub.folder / f"site-{version}")
        index = site.publish(version).index
        for blob in (site.home / "blobs" / "sha256").iterdir():
            self.hub.layout.put(blob.read_bytes())
        self.hub.release(index, version)
        self.index[version] = index
        target = self.hub.layout
        signature = self._signature(index)
        model = DesiredModel(model="digits", version=version, index=index, probation=ProbationTerms(soak_s=0))
        now = self.hub.clock.now()
        out = self.folder / f"stick-{version}.tar"
        write_bundle(
            out,
            zone="eu",
            tuf=self.hub.repository.files("sideload", "clinic"),
            directive=self.hub.directive(ME, model, generation=generation),
            blobs=target,
            contents=contents_of(target, index, signature),
            director=self.hub.repository.director,
            created=now,
            expires=now + timedelta(days=30),
            recipient=key_of_pem(self.hub.identities[ME].public_key) if encrypt else None,
        )
        if spoil is not None:
            data = bytearray(out.read_bytes())
            out.write_bytes(bytes(spoil(data)))
        return out

    def _signature(self, index):
        files = self.hub.repository.files()
        family = json.loads(files["model-digits.json"])["signed"]["targets"]
        found = next(t for t in family.values() if f"sha256:{t['hashes']['sha256']}" == index)
        return found["custom"]["signature"]["digest"]

    def spoke(self, *args, fails=None, home=None):
        root = str((home or self.home).root)
        line = ["unshare", "-n", sys.executable, "-m", "spoke_agent", "--json", "--home", root, *map(str, args)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
        if fails is not None:
            assert done.returncode == fails, done.stdout + done.stderr
            return json.loads(done.stderr.strip().splitlines()[-1])
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def words(self, *args):
        line = ["unshare", "-n", sys.executable, "-m", "spoke_agent", "--home", str(self.home.root), *map(str, args)]
        return subprocess.run(line, capture_output=True, text=True, timeout=120, check=True).stdout

    def champion(self):
        found = read_slots(self.home.slots).models.get("digits")
        return found.champion.version if found and found.champion else None


@pytest.fixture
def clinic(tmp_path):
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0:
        pytest.skip("network namespaces are not allowed here")
    made = Clinic(tmp_path)
    yield made
    made.hub.close()


def test_a_stick_brings_a_version_and_receipts_go_back(clinic):
    told = clinic.spoke("sideload", "apply", clinic.stick(1))
    assert told["chain"][-1] == "committed"
    assert told["wanted"] == ["digits@1"]
    assert clinic.champion() == 1
    out = clinic.folder / "receipts.json"
    clinic.spoke("sideload", "receipts", out)
    key = key_of_pem(clinic.hub.identities[ME].public_key)
    receipts = read_receipts(out.read_bytes(), key, ME)
    reports = [
        verify_report(m.text.encode(), key, ME, 0, clinic.hub.clock.now()) for m in receipts.messages if m.kind == "report"
    ]
    assert [str(r.state) for r in reports][-1] == "committed"
    log = EgressLog(clinic.home.egress)
    assert receipts.egress_chain == log.links(1000)
    log.close()
    served = reports[-1].serving[0]
    files = {d.digest for d in open_package(clinic.hub.layout, served.index).files.values()}
    assert served.file in files

    assert "version 1 is in place; `spoke run` serves it" in clinic.words("sideload", "apply", clinic.folder / "stick-1.tar")
    assert re.search(r": \d+ report$", clinic.words("sideload", "receipts", clinic.folder / "more.json").strip())

    again = clinic.spoke("sideload", "apply", clinic.stick(2))
    assert (again["chain"][-1], clinic.champion()) == ("committed", 2)
    assert clinic.spoke("status")["generation"] == 2


def test_a_spoiled_stick_is_refused_and_changes_nothing(clinic):
    clinic.spoke("sideload", "apply", clinic.stick(1))

    def cut(data):
        return data[: len(data) // 2]

    def flip(data):
        data[len(data) // 2] ^= 1
        return data

    assert clinic.spoke("sideload", "apply", clinic.stick(2, spoil=cut), fails=6)["error"] == "bundle_incomplete"
    assert clinic.spoke("sideload", "apply", clinic.stick(3, spoil=flip), fails=4)["error"] == "bundle_refused"
    assert clinic.spoke("sideload", "apply", clinic.stick(4, generation=0 + 1), fails=4)["error"] == "directive_refused"
    assert clinic.champion() == 1


def test_the_same_stick_twice_leaves_nothing_behind(clinic):
    stick = clinic.stick(1)
    clinic.spoke("sideload", "apply", stick)
    once = sorted(p.name for p in (clinic.home.root / "blobs" / "sha256").iterdir())
    clinic.spoke("sideload", "apply", stick)
    assert sorted(p.name for p in (clinic.home.root / "blobs" / "sha256").iterdir()) == once


def test_an_older_stick_with_what_was_denied_since_is_refused_and_that_is_reported(clinic):
    clinic.spoke("sideload", "apply", clinic.stick(1))
    older = clinic.stick(2, generation=9)
    clinic.hub.repository.deny(clinic.index[2])
    clinic.spoke("sideload", "apply", clinic.stick(3, generation=8))
    assert clinic.spoke("sideload", "apply", older, fails=4)["error"] == "bundle_refused"
    assert clinic.champion() == 3
    journal = Journal(clinic.home.journal)
    assert [str(draft.reason) for draft in journal.drafts()] == ["denied"]
    journal.close()


def test_an_encrypted_stick_opens_at_its_site_alone(clinic, tmp_path):
    sealed = clinic.stick(1, encrypt=True)
    assert open_package(clinic.hub.layout, clinic.index[1]).path("README.md").read_bytes() not in sealed.read_bytes()
    stranger = SpokeHome(tmp_path / "stranger")
    clinic.hub.enrol(stranger.root, "dubai")
    assert clinic.spoke("sideload", "apply", sealed, home=stranger, fails=4)["error"] == "seal_broken"
    assert clinic.spoke("sideload", "apply", sealed)["chain"][-1] == "committed"


class PowerCut(BaseException):
    """The plug is pulled."""


def test_a_cut_at_the_end_of_one_stick_takes_nothing_from_the_next(clinic):
    """The next start ends what was cut, and tidies up: by then the files of the next stick are here, and no slot names them."""
    settings, server = SpokeSettings(tick_s=0.02), FakeServer(clinic.home.slots, ManualClock())

    def apply(stick, cut=()):
        with assemble(clinic.home, settings, offline=True, inline=True, server=server) as components:
            enter = components.runner.enter
            components.runner.enter = lambda update: _cut() if update.state in cut else enter(update)
            follow_through(components, take_in(components, stick), SystemClock(), lambda entry: None, 0.02)

    with pytest.raises(PowerCut):
        apply(clinic.stick(1), cut=[State.COMMITTED])
    apply(clinic.stick(2))
    assert clinic.champion() == 2


def _cut():
    raise PowerCut


def test_trust_moves_on_with_every_stick(clinic):
    clinic.spoke("sideload", "apply", clinic.stick(1))
    trust = TrustStore(clinic.home.trust, clinic.hub.clock, clinic.hub.repository.anchor, site="clinic")
    first = trust.released().versions["timestamp"]
    clinic.spoke("sideload", "apply", clinic.stick(2))
    trust = TrustStore(clinic.home.trust, clinic.hub.clock, clinic.hub.repository.anchor, site="clinic")
    assert trust.released().versions["timestamp"] >= first

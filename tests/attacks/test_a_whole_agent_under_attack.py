"""Each attack on a whole agent: it is refused, the signed report tells the hub why, and what was served before is served still.

The attacker owns the way from the hub: he publishes what he likes, and has the keys that an attack says were stolen.
"""

import base64
import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Root, Timestamp

from model_formats.core.types import digest_of
from model_formats.package import open_package
from spoke_agent.daemon import agent
from spoke_agent.site.slots import read_slots
from sync.bus.bus import Message
from sync.core.clock import SystemClock
from sync.core.types import Reason, SpokeId
from sync.protocol import topics
from sync.protocol.messages import DeltaOffer, DesiredModel, Directive, ProbationTerms, Status
from sync.protocol.topics import spoke_rights
from sync.store import BLOCK_SIZE
from sync.transfer import BlobSender
from sync.trust.dsse import seal
from sync.trust.keys import role_signer
from tests.attacks.forging import evil, forged, hang_together, stolen, up
from tests.samples.model_folder import WEIGHTS
from tests.spoke_agent.daemon.conftest import ME, Field

DUBAI = SpokeId("dubai")


class Site(Field):
    """A spoke that serves version 1, and the wire to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.repo = self.hub.repository
        self.first = self.package(1)
        self.start(admit_timeout_s=1.0)
        self.hub.want(ME, self.first, 1)
        self.settled()
        self.files = self.repo.files()

    def deliver(self) -> None:
        for name, data in self.files.items():
            self.hub.bus.publish(Message(topics.tuf("eu", name), data, retain=True))

    def second(self) -> str:
        """Version 2 is released, and the spoke hears of it; returns its index."""
        index = self.package(2)
        trust = self.components.verifier.store
        self.until(lambda: any(t.digest == index for t in trust.released().targets.values()))
        self.files = self.repo.files()
        return index

    def last(self):
        return self.hub.reports[ME][-1]

    def told(self, reason: Reason):
        """The report that says so; one refusal may bring another after it."""
        return next((r for r in reversed(self.hub.reports[ME]) if r.reason is reason), None)

    def signed(self, **changes: object) -> bytes:
        """A directive for version 2 by the real director, changed before it was signed."""
        model = DesiredModel(model="digits", version=2, index="sha256:" + "2" * 64, probation=ProbationTerms(soak_s=0))
        honest = Directive.parse(base64.b64decode(json.loads(self.hub.directive(ME, model))["payload"]))
        return seal(honest.replace(**changes), self.repo.director)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setattr(agent, "DOUBT_S", 0.05)
    made = Site(tmp_path)
    yield made
    made.close()


# ---- what is refused, and what the report says of it ------------------------------------------------------------------------


def arbitrary_package(site: Site) -> None:
    site.files["model-digits.json"] = forged(site.files["model-digits.json"], evil)
    hang_together(site, "snapshot", "timestamp")


def rollback_of_timestamp(site: Site) -> None:
    old = site.files["timestamp.json"]
    site.second()
    site.files["timestamp.json"] = old


def rollback_of_snapshot(site: Site) -> None:
    old = site.files["snapshot.json"]
    site.second()

    def back(signed: Timestamp) -> None:
        up(signed)
        signed.snapshot_meta = type(signed.snapshot_meta).from_data(json.loads(old)["signed"]["version"], old, ["sha256"])

    site.files["snapshot.json"] = old
    site.files["timestamp.json"] = forged(site.files["timestamp.json"], back, stolen(site, "timestamp"))


def rollback_of_targets(site: Site) -> None:
    old = site.files["targets.json"]
    site.repo.deny(digest_of(b"something bad"))
    site.hub.publish()
    site.second()
    site.files["targets.json"] = old
    hang_together(site, "snapshot", "timestamp")


def rollback_of_a_family(site: Site) -> None:
    old = site.files["model-digits.json"]
    site.second()
    site.files["model-digits.json"] = old
    hang_together(site, "snapshot", "timestamp")


def freeze(site: Site) -> None:
    """Nine days pass, and only what was current then is delivered."""

    class Later(SystemClock):
        def now(self):
            return super().now() + timedelta(days=9)

    site.stop()
    site.hub.clock = Later()
    site.start(clock=Later())


def fast_forward(site: Site) -> None:
    def far(signed: Timestamp) -> None:
        signed.version = 2**31

    site.files["timestamp.json"] = forged(site.files["timestamp.json"], far, stolen(site, "timestamp"))
    site.deliver()
    trust = site.components.verifier.store
    site.until(lambda: trust.released().versions["timestamp"] == 2**31)
    site.package(2)
    site.files = site.repo.files()


def mix_and_match(site: Site) -> None:
    """Of a new release all is delivered but the snapshot, which is the one before."""
    old, tell = site.files["snapshot.json"], site.hub.publish
    site.hub.publish = site.repo.refresh_online
    site.package(2)
    site.hub.publish, site.files = tell, site.repo.files()
    site.files["snapshot.json"] = old


def endless_data(site: Site) -> None:
    site.files["timestamp.json"] = b" " * 20_000 + site.files["timestamp.json"]


def unknown_key(site: Site) -> None:
    site.files["timestamp.json"] = forged(site.files["timestamp.json"], up, CryptoSigner.generate_ed25519())


def below_the_threshold(site: Site) -> None:
    site.files["2.root.json"] = forged(site.files["1.root.json"], up, stolen(site, "root-1"))


def one_key_twice(site: Site) -> None:
    once = json.loads(forged(site.files["1.root.json"], up, stolen(site, "root-1")))
    once["signatures"] *= 2
    site.files["2.root.json"] = json.dumps(once).encode()


def skipped_root(site: Site) -> None:
    def skip(signed: Root) -> None:
        signed.version = 3

    site.files["2.root.json"] = forged(site.files["1.root.json"], skip, stolen(site, "root-1"), stolen(site, "root-2"))


METADATA = {
    arbitrary_package: Reason.METADATA_INVALID,
    rollback_of_timestamp: Reason.METADATA_ROLLBACK,
    rollback_of_snapshot: Reason.METADATA_ROLLBACK,
    rollback_of_targets: Reason.METADATA_ROLLBACK,
    rollback_of_a_family: Reason.METADATA_ROLLBACK,
    freeze: Reason.METADATA_EXPIRED,
    fast_forward: Reason.METADATA_ROLLBACK,
    mix_and_match: Reason.METADATA_INVALID,
    endless_data: Reason.METADATA_INVALID,
    unknown_key: Reason.METADATA_INVALID,
    below_the_threshold: Reason.METADATA_INVALID,
    one_key_twice: Reason.METADATA_INVALID,
    skipped_root: Reason.METADATA_ROLLBACK,
}


@pytest.mark.parametrize("attack", METADATA, ids=lambda a: a.__name__)
def test_false_metadata(site: Site, attack: Callable[[Site], None]) -> None:
    attack(site)
    site.deliver()
    site.until(lambda: site.told(METADATA[attack]))
    assert_served(site, site.told(METADATA[attack]))


DIRECTIVES = {
    "another key": (Reason.DIRECTIVE_UNTRUSTED, lambda s: seal(Directive.parse(_payload(s.signed())), role_signer())),
    "wrong recipient": (Reason.WRONG_RECIPIENT, lambda s: s.signed(site="dubai")),
    "another zone": (Reason.WRONG_RECIPIENT, lambda s: s.signed(zone="me")),
    "replayed": (Reason.DIRECTIVE_REPLAYED, lambda s: s.signed(generation=1)),
    "oversized": (Reason.DIRECTIVE_UNTRUSTED, lambda s: s.signed()[:-1] + b" " * 600_000 + b"}"),
}


@pytest.mark.parametrize("name", DIRECTIVES)
def test_a_false_directive(site: Site, name: str) -> None:
    reason, forge = DIRECTIVES[name]
    site.hub.send(ME, forge(site))
    site.until(lambda: site.told(reason))
    assert_served(site, site.told(reason))


def test_a_package_for_another_zone(site: Site) -> None:
    site.hub.want(ME, site.package(2, zones=["me"]), 2)
    site.settled("rejected")
    assert site.last().reason is Reason.ZONE_FORBIDDEN
    assert_served(site)


def test_slow_retrieval(site: Site) -> None:
    """One block, and the next after a day and a half: the step ends in its time."""
    index = site.second()
    site.hub.sender.stop()
    site.hub.sender = BlobSender(site.hub.bus, site.hub.layout, bytes_per_second=1.0)
    site.hub.sender.start()
    site.hub.want(ME, index, 2)
    site.settled("failed")
    assert site.last().reason is Reason.TIMEOUT
    assert_served(site)


def test_a_tampered_file_that_no_block_list_covers(site: Site) -> None:
    index = site.second()
    path = site.hub.layout.path(index)
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    site.hub.want(ME, index, 2)
    site.settled("failed")
    assert site.last().reason is Reason.PACKAGE_TAMPERED
    assert_served(site)


# ---- what is thrown away, and does no harm ----------------------------------------------------------------------------------


@pytest.mark.parametrize("owns_the_broker", [False, True])
def test_blocks_poisoned_by_another_subscriber(site: Site, owns_the_broker: bool) -> None:
    """By its rights another spoke publishes no block at all; whoever owns the broker does, and each is thrown away."""
    index = site.second()
    file = open_package(site.hub.layout, index).files[WEIGHTS]
    other = site.broker.client("dubai.main", None if owns_the_broker else spoke_rights(DUBAI, "eu"))
    other.connect()
    poison = topics.block("eu", file.digest, BLOCK_SIZE)
    heard = site.hub.bus.subscribe(
        topics.want("eu", file.digest), lambda _m: other.publish(Message(poison, bytes(BLOCK_SIZE), qos=0))
    )
    site.hub.want(ME, index, 2)
    site.until(lambda: (site.last().version, str(site.last().state)) == (2, "committed"))
    heard.cancel()
    other.close()
    assert digest_of(site.components.store.path(file.digest).read_bytes()) == file.digest
    open_package(site.components.store, index).check("onnx-int8")


def test_a_delta_whose_base_was_swapped(site: Site) -> None:
    """It leads to other bytes than the signed ones: the whole file comes instead."""
    index = site.second()
    old, new = (open_package(site.hub.layout, i) for i in (site.first, index))
    delta = tmp_delta(site, old.path(WEIGHTS), new.path(WEIGHTS))
    swapped = old.files["package.json"].digest
    offer = DeltaOffer(
        base=swapped, target=new.files[WEIGHTS].digest, delta=delta, size=site.hub.layout.path(delta).stat().st_size
    )
    assert offer.size < new.files[WEIGHTS].size
    site.hub.want(ME, index, 2, deltas=(offer,))
    site.until(lambda: (site.last().version, str(site.last().state)) == (2, "committed"))
    assert not site.last().evidence.used_delta
    open_package(site.components.store, index).check("onnx-int8")


def tmp_delta(site: Site, old: Path, new: Path) -> str:
    from model_formats.delta.encode import encode

    near = bytearray(old.read_bytes())
    near[7] ^= 1
    close, file = site.folder / "near", site.folder / "delta"
    close.write_bytes(bytes(near))
    encode(old, close, file)
    return site.hub.layout.put(file.read_bytes())


def test_an_oversized_message_is_not_kept(site: Site) -> None:
    for name in ("timestamp.json", "x.json"):
        site.hub.bus.publish(Message(topics.tuf("eu", name), bytes(6_000_000)))
    site.hub.want(ME, site.second(), 2)
    site.until(lambda: (site.last().version, str(site.last().state)) == (2, "committed"))
    assert sum(p.stat().st_size for p in site.home.mirror.iterdir()) < 100_000


def test_a_forged_last_will(site: Site) -> None:
    """By its rights another spoke cannot speak of us; and if it could, a status is a hint that changes nothing here or there."""
    lie = Status(site=ME.site, spoke=ME.spoke, online=False, time=site.hub.clock.now())
    other = site.broker.client("dubai.main", spoke_rights(DUBAI, "eu"))
    other.connect(will=Message(topics.status(ME), lie.canonical(), retain=True))
    before = len(site.hub.statuses)
    site.broker.cut(other)
    site.hub.want(ME, site.second(), 2)
    site.until(lambda: (site.last().version, str(site.last().state)) == (2, "committed"))
    assert all(status.online for status in site.hub.statuses[before:])
    other.close()


def assert_served(site: Site, report=None) -> None:
    """Version 1: in the report's own words, on the disk, and by what the server follows."""
    assert [(s.model, s.version, s.index) for s in (report or site.last()).serving] == [("digits", 1, site.first)]
    champion = read_slots(site.home.slots).models["digits"].champion
    assert champion is not None
    assert champion.index == site.first
    open_package(site.components.store, site.first).check(champion.variant)


def _payload(envelope: bytes) -> bytes:
    return base64.b64decode(json.loads(envelope)["payload"])

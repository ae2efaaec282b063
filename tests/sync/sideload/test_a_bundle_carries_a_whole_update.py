import json
import os
import subprocess
import sys
import tarfile
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from model_formats.core.errors import SpokeshaveError
from model_formats.core.types import digest_of
from model_formats.package.read import open_package
from sync.core.types import Reason, SpokeId
from sync.sideload.bundle import BundleIncomplete, BundleRefused, apply_bundle, contents_of, write_bundle
from sync.store import BlobStore
from sync.trust.encrypted_bundle import SealBroken, load_opener
from sync.trust.errors import DirectiveRefused, MetadataRefused
from sync.trust.verifier import verify_contents, verify_release
from tests.samples.trust_world import CLINIC, DAY, World, desired


def export(world: World, ref: str = "digits@1", generation: int = 1, **options) -> Path:
    layout, index, signature = world.publish_package(ref)
    now = world.clock.now()
    path = world.folder / f"{ref}.bundle"
    defaults = {
        "zone": "me",
        "tuf": world.repo.files("sideload", CLINIC.site),
        "directive": world.directive(desired(ref, index), generation=generation, days=60),
        "blobs": layout,
        "contents": contents_of(layout, index, signature),
        "director": world.repo.director,
        "created": now,
        "expires": now + timedelta(days=90),
    }
    write_bundle(path, **{**defaults, **options})
    return path


def apply(world: World, path: Path, **options):
    store = BlobStore(world.folder / "home")
    trust = world.spoke("clinic", lane="sideload", site="clinic")
    return apply_bundle(path, **{"me": CLINIC, "zone": "me", "store": store, "trust": trust, **options})


def test_all_that_an_update_needs_is_inside(world: World) -> None:
    applied = apply(world, export(world))
    want = applied.directive.models[0]
    release = verify_release(want, applied.released, "me", "ae-health")
    store = BlobStore(world.folder / "home")
    package = open_package(store, want.index)
    signature = store.path(release.signature).read_bytes()
    publisher = verify_contents(package, signature, release, applied.released, "me", "gdpr", variant="onnx-int8")
    assert publisher.proof == "full"
    assert applied.new_bytes == applied.bundle.blob_bytes


def test_skopeo_reads_the_package_out_of_a_bundle(world: World, tmp_path: Path) -> None:
    path = export(world)
    with tarfile.open(path) as tar:
        index = json.load(tar.extractfile("index.json"))
    shown = subprocess.run(
        ["skopeo", "inspect", "--raw", f"oci-archive:{path}"],
        capture_output=True,
        check=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert digest_of(shown.stdout) == index["manifests"][0]["digest"]


def test_applying_twice_writes_nothing_again(world: World) -> None:
    path = export(world)
    first = apply(world, path)
    again = apply(world, path, last_generation=1, last_digest=first.directive.digest)
    assert (again.new_blobs, again.new_bytes) == (0, 0)


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 0.9, 0.98])
def test_a_partly_copied_file_is_refused_and_goes_on_later(world: World, share: float) -> None:
    path = export(world)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises((BundleIncomplete, BundleRefused)):
        apply(world, path)
    held = BlobStore(world.folder / "home").digests()
    path.write_bytes(whole)
    applied = apply(world, path)
    assert applied.new_blobs == len([i for i in applied.bundle.items if i.name.startswith("blobs/")]) - len(held)


def test_older_metadata_than_the_spokes_is_merged_while_it_is_valid(world: World) -> None:
    path = export(world)
    world.clock.advance(DAY)
    world.release("letters@1", zones=("me",))
    world.clock.advance(DAY)
    world.repo.refresh_online()
    world.publish()
    trust = world.spoke("clinic", lane="sideload", site="clinic")
    newer = trust.update(world.fetch)
    world.clock.advance(20 * DAY)
    assert trust.released().expired
    applied = apply(world, path)
    assert applied.merged
    assert applied.released.versions == newer.versions
    assert not applied.released.expired
    world.clock.advance(75 * DAY)
    assert world.spoke("clinic", lane="sideload", site="clinic").released().expired == ("timestamp", "snapshot")


def test_what_was_denied_since_is_refused_though_the_bundle_is_older(world: World) -> None:
    path = export(world)
    layout_index = apply(world, path).directive.models[0].index
    world.clock.advance(DAY)
    world.repo.deny(layout_index)
    world.publish()
    world.spoke("clinic", lane="sideload", site="clinic").update(world.fetch)
    with pytest.raises(BundleRefused) as e:
        apply(world, path)
    assert e.value.reason is Reason.DENIED


@pytest.mark.parametrize(
    ("me", "zone", "reason"),
    [
        (SpokeId("dubai"), "me", Reason.WRONG_RECIPIENT),
        (SpokeId("clinic", "second"), "me", Reason.WRONG_RECIPIENT),
        (CLINIC, "eu", Reason.WRONG_RECIPIENT),
    ],
)
def test_a_bundle_for_somebody_else_is_refused(world: World, me: SpokeId, zone: str, reason: Reason) -> None:
    path = export(world)
    trust = world.spoke("other", lane="sideload", site=me.site)
    with pytest.raises((BundleRefused, MetadataRefused)) as e:
        apply(world, path, me=me, zone=zone, trust=trust)
    assert e.value.reason is reason
    assert "hub bundle export" in e.value.hint
    assert not BlobStore(world.folder / "home").digests()


def test_a_bundle_does_not_last_for_ever(world: World) -> None:
    path = export(world)
    world.clock.advance(100 * DAY)
    with pytest.raises(MetadataRefused) as e:
        apply(world, path)
    assert e.value.reason is Reason.METADATA_EXPIRED


def test_a_bundle_that_expired_this_day_says_at_which_minute(world: World) -> None:
    path = export(world, expires=world.clock.now() + timedelta(minutes=5))
    world.clock.advance(600)
    with pytest.raises(BundleRefused, match=r"expired at .* \d\d:\d5 UTC; trusted time is .* \d\d:\d0 UTC") as e:
        apply(world, path)
    assert e.value.reason is Reason.DIRECTIVE_EXPIRED


def test_an_older_directive_than_the_last_is_a_replay(world: World) -> None:
    with pytest.raises(DirectiveRefused) as e:
        apply(world, export(world, generation=3), last_generation=4)
    assert e.value.reason is Reason.DIRECTIVE_REPLAYED


def test_a_sticks_long_timestamp_is_not_taken_online(world: World) -> None:
    world.release("digits@1")
    world.files = world.repo.files("sideload", "clinic")
    with pytest.raises(MetadataRefused, match="sideload lane"):
        world.spoke("clinic", lane="online", site="clinic").update(world.fetch)


def test_a_sealed_bundle_is_read_by_its_site_alone(world: World) -> None:
    path = export(world, recipient=world.device.public_key)
    with pytest.raises(BundleRefused, match="encrypted"):
        apply(world, path)
    with pytest.raises(SealBroken):
        apply(world, path, private=ec.generate_private_key(ec.SECP256R1()))
    applied = apply(world, path, private=load_opener(world.device.private_bytes))
    assert applied.new_blobs > 0
    assert b"digits" not in path.read_bytes()


def test_a_sealed_bundle_cut_off_between_two_pieces_is_noticed(world: World) -> None:
    path = export(world, recipient=world.device.public_key)
    head, piece = 8 + 65, 64 * 1024 + 16
    path.write_bytes(path.read_bytes()[: head + 5 * piece])
    with pytest.raises(SealBroken, match="cut off"):
        apply(world, path, private=load_opener(world.device.private_bytes))


def rewritten(path: Path, change) -> None:
    """The same tar with one member changed: `change(info, data)` gives (info, data), or None to leave it out."""
    out = BytesIO()
    with tarfile.open(path) as old, tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as new:
        for info in old:
            changed = change(info, old.extractfile(info).read())
            if changed:
                info, data = changed
                info.size = len(data)
                new.addfile(info, BytesIO(data))
    path.write_bytes(out.getvalue())


def renamed(name: str):
    def change(info: tarfile.TarInfo, data: bytes):
        if info.name.startswith("blobs/"):
            info.name = name
        return info, data

    return change


def linked(info: tarfile.TarInfo, data: bytes):
    if info.name.startswith("blobs/"):
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        return info, b""
    return info, data


FAULTS = {
    "a blob with one bit flipped": lambda i, d: (
        i,
        bytes([d[0] ^ 1]) + d[1:] if i.name.startswith("blobs/") and len(d) > 100_000 else d,
    ),
    "a blob left out": lambda i, d: None if i.name.startswith("blobs/") and len(d) == 600_000 else (i, d),
    "a path out of the folder": renamed("blobs/../../../etc/cron.d/x"),
    "an absolute path": renamed("/etc/passwd"),
    "a blob that is not listed": renamed("blobs/sha256/" + "0" * 64),
    "a link": linked,
    "no directive": lambda i, d: None if i.name == "directive.json" else (i, d),
    "no inventory": lambda i, d: None if i.name == "bundle.json" else (i, d),
    "another deny list": lambda i, d: (
        (i, b'{"digests":[],"kind":"deny-list","schema":1} ') if i.name == "tuf/deny.json" else (i, d)
    ),
    "a file of TUF left out": lambda i, d: None if i.name == "tuf/snapshot.json" else (i, d),
    "a stranger in the head": lambda i, d: (i, d) if i.name != "oci-layout" else (i.replace(name="evil.sh", deep=False), d),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_bundle_is_refused(world: World, fault: str) -> None:
    path = export(world)
    rewritten(path, FAULTS[fault])
    with pytest.raises(SpokeshaveError) as e:
        apply(world, path)
    assert e.value.exit in (4, 5, 6)
    outside = {p.name for p in world.folder.iterdir()} - {"repo", "digits@1", "digits@1.bundle", "home", "clinic"}
    assert not outside


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\0" * 1024, os.urandom(4096), b"SSSEAL1\n"])
def test_what_is_no_bundle_is_refused(world: World, data: bytes) -> None:
    path = world.folder / "x"
    path.write_bytes(data)
    with pytest.raises(SpokeshaveError):
        apply(world, path)


def test_a_missing_file_is_said_plainly(world: World) -> None:
    with pytest.raises(BundleIncomplete, match="cannot be read"):
        apply(world, world.folder / "nowhere.bundle")


APPLY = """
import sys, socket
from datetime import datetime, UTC
from pathlib import Path
from sync.sideload.bundle import apply_bundle
from sync.core.clock import ManualClock
from sync.store import BlobStore
from sync.trust.client import TrustStore
from sync.core.types import SpokeId

def no_socket(*a, **k): raise AssertionError("a socket was opened")
socket.socket = no_socket
home = Path(sys.argv[1])
clock, anchor = ManualClock(datetime.fromisoformat(sys.argv[3])), (home / "anchor").read_bytes()
trust = TrustStore(home / "trust", clock, anchor, lane="sideload", site="clinic")
done = apply_bundle(Path(sys.argv[2]), me=SpokeId("clinic"), zone="me", store=BlobStore(home), trust=trust)
heavy = ("torch", "onnx", "sigstore", "httpx", "paho.mqtt.client")
print(done.new_blobs, sorted(m for m in sys.modules if m in heavy))
"""


def test_it_works_in_an_empty_network_namespace_without_opening_a_socket(world: World) -> None:
    path = export(world)
    home = world.folder / "alone"
    home.mkdir()
    (home / "anchor").write_bytes(world.repo.anchor)
    command = [sys.executable, "-c", APPLY, str(home), str(path), world.clock.now().isoformat()]
    if subprocess.run(["unshare", "-n", "true"], check=False, capture_output=True).returncode == 0:
        command = ["unshare", "-n", *command]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split(maxsplit=1)[1].strip() == "[]"

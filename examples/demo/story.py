"""The story, step by step. Each step drives the programs that a person would use, says what it claims, and checks it.

Three sites: `dubai` and `frankfurt` on the network, `clinic` without one. Each serves handwritten digits of its own
(scikit-learn's real set), which never leave it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import rotate

from examples.demo.callers import Caller, Shop
from examples.demo.damage import sabotage
from examples.demo.report import Report, Step, console
from examples.demo.rollouts import BAD, GOOD
from examples.demo.search import planted_rows, readings, search
from examples.demo.stage import Stage
from examples.demo.transfer import BLOCK, LINE, carry, ended, kill_on_the_way, picture_book
from hub.train.datasets import digits
from model_formats.build.dataset import Rows
from model_formats.core.types import digest_of_file

SITES = {"dubai": ("me", "ae-pdpl"), "frankfurt": ("eu", "gdpr"), "clinic": ("me", "ae-health")}
TURN = 35
"""Degrees by which Frankfurt's scanner turns."""


@dataclass
class Cast:
    """What the steps hand on to each other."""

    stage: Stage
    rows: Mapping[str, Rows]
    callers: dict[str, Caller] = field(default_factory=dict)
    address: dict[str, Any] = field(default_factory=dict)

    def caller(self, name: str) -> Caller:
        """A program that calls a spoke."""
        return Caller(self.stage.home(name), by_socket=bool(self.stage.hosts))

    def images(self, site: str) -> np.ndarray[Any, Any]:
        """The site's own digits [n, 1, 8, 8], raw 0..16."""
        return self.rows[site].inputs["image"]

    def labels(self, site: str) -> np.ndarray[Any, Any]:
        """What they are."""
        return self.rows[site].labels

    def serving(self, site: str) -> int | None:
        """Version that the hub knows this site serves, by its last signed report."""
        shown = self.stage.hub("spoke", "show", site)
        return next((s["version"] for s in shown["serving"] if s["model"] == "digits"), None)


def tell(stage: Stage, report: Report) -> None:
    """All twelve steps; the first that fails ends the story."""
    cast = Cast(stage, digits().sites)
    console.print("[bold]Spokeshave[/]: one hub, three sites, real digits. Nothing is mocked.")
    for name, title, act in STEPS:
        with report.step(name, title) as step:
            act(cast, step)


def hub_up(cast: Cast, step: Step) -> None:
    stage = cast.stage
    stage.hub("init")
    (stage.home("hub") / "hub.toml").write_text(LINE)
    keys = {path.stem for path in stage.home("hub").rglob("*.pem")}
    wanted = {"root-1", "root-2", "root-3", "targets", "snapshot", "timestamp", "director"}
    step.claim(wanted <= keys, f"keys: {', '.join(sorted(wanted))}; and a device CA")
    stage.start("hub", ["hub", "up"], stage.home("hub"))
    file = stage.home("hub") / "run" / "hub.json"
    cast.address = stage.wait("the hub", lambda: file.exists() and json.loads(file.read_text()), 30)["spokes_use"]
    step.tell(f"API and registry {cast.address['url']}, Mosquitto (MQTT 5, mTLS, ACL) on port {cast.address['broker_port']}")
    second = stage.hub("up", fails=True)
    step.claim(second["error"] == "hub_running", f"a second `hub up` on the same folder is refused: {second['message']}")
    step.figure(keys=len(keys))


def train(cast: Cast, step: Step) -> None:
    stage = cast.stage
    built = stage.hub("model", "build", "digits", "--version", "1", "--no-emulate", tell=step.tell)
    runs = sorted((stage.home("hub") / "runs").glob("*/run.json"))
    run = json.loads(runs[0].read_text())
    accuracy = run["metrics"]["held_out_accuracy"]
    step.claim(accuracy >= 0.95, f"held-out accuracy {accuracy:.4f} after {run['seconds']:.1f} s on {run['device']}")
    step.claim(
        run["dataset"] and run["code_version"],
        f"tracked: run {run['run']}, data {run['dataset'][:19]}…, code {run['code_version']}",
    )
    step.figure(held_out_accuracy=accuracy, train_seconds=run["seconds"], rows=run["rows"], device=run["device"])
    (stage.folder / "built.json").write_text(json.dumps(built))


def shave(cast: Cast, step: Step) -> None:
    built = json.loads((cast.stage.folder / "built.json").read_text())
    of = {v["variant"]: v for v in built["variants"]}
    fp32, int8 = of["onnx-fp32"], of["onnx-int8"]
    gate = built["gate"]
    ratio = int8["bytes"] / fp32["bytes"]
    step.claim(
        gate["passed"] and gate["drop"] <= gate["max_drop"],
        f"accuracy {fp32['score']:.4f} fp32, {int8['score']:.4f} INT8: within the gate",
    )
    step.claim(ratio < 0.5, f"{fp32['bytes']:,} bytes become {int8['bytes']:,}")
    speed = int8["cpu_ms_batch32"] / fp32["cpu_ms_batch32"]
    names = {path.name for path in Path(built["folder"]).iterdir()}
    wanted = {"golden.npz", "profile.json", "contract.json", "evidence.json", "anchors.npz", "README.md"}
    step.claim(wanted <= names, f"in the folder: {', '.join(sorted(names))}")
    step.figure(fp32_accuracy=fp32["score"], int8_accuracy=int8["score"], int8_size_over_fp32=ratio, int8_cpu_over_fp32=speed)


def publish(cast: Cast, step: Step) -> None:
    stage = cast.stage
    done = stage.hub("model", "publish", "digits@1")
    step.claim(done["complete"], f"digits@1 is released as {done['index'][:19]}…, signed {done['signatures']}")
    seen = stage.hub("model", "verify", "digits@1")
    step.claim(
        seen["publisher"], f"pulled back from the registry: {seen['files']} files checked, signed by {seen['publisher'][:40]}"
    )
    step.figure(files=seen["files"], bytes=seen["bytes"])


def enrol(cast: Cast, step: Step) -> None:
    stage = cast.stage
    codes = {}
    for site, (zone, regime) in SITES.items():
        codes[site] = stage.hub("spoke", "invite", site, "--zone", zone, "--regime", regime)["code"]
        home = stage.home(site)
        home.mkdir()
        (home / "spoke.toml").write_text(SPOKE_SETTINGS)
    for site in ("dubai", "frankfurt"):
        stage.spoke(site, "enrol", "--hub", cast.address["url"], "--code", codes[site])
        step.tell(f"{site}: enrolled over HTTPS; its key never left it")
    again = stage.command(
        ["spoke", "enrol", "--hub", cast.address["url"], "--code", codes["dubai"]], stage.home("thief"), fails=True
    )
    step.claim(again["error"] == "enrolment_code_refused", f"a code works once: {again['message']}")
    by_files(cast, codes["clinic"], step)
    for site in ("dubai", "frankfurt"):
        tap = str(stage.folder / f"{site}.tap") if site == "frankfurt" else ""
        stage.start(
            site,
            ["spoke", "run"],
            stage.home(site),
            SPOKESHAVE_TAP=tap,
            PYTHONPATH=str(Path(__file__).parent / "tap") if tap else "",
        )
        cast.callers[site] = cast.caller(site)
    listed = stage.wait("the spokes to be online", lambda: online(stage, 2), 30)
    step.claim({s["spoke"] for s in listed} == {f"{s}/main" for s in SITES}, "three spokes are known; two are online")
    step.figure(spokes=len(listed))


SPOKE_SETTINGS = """\
# A demo has no fifteen minutes: look at drift every second.
upkeep_s = 1
drift_window_s = 1
"""


def by_files(cast: Cast, code: str, step: Step) -> None:
    """The clinic has no network: a request goes out on a stick, a certificate comes back."""
    stage = cast.stage
    request, grant = stage.folder / "clinic-request.json", stage.folder / "clinic-grant.json"
    stage.spoke("clinic", "enrol", "--code", code, "--request-out", request)
    stage.hub("spoke", "admit", request, grant)
    stage.spoke("clinic", "enrol", "--grant", grant)
    step.tell("clinic: enrolled by files, without a network")


def online(stage: Stage, wanted: int) -> Any:
    """All spokes, once enough are online."""
    listed = stage.hub("spoke", "list")
    return listed if sum(s["online"] for s in listed) >= wanted else None


def rollout(cast: Cast, step: Step) -> None:
    stage = cast.stage
    file = stage.folder / "digits-1.yaml"
    file.write_text(GOOD)
    stage.hub("rollout", "apply", file)
    order: list[str] = []

    def watch() -> Any:
        shown = stage.hub("rollout", "show", "digits-1")
        for site in ("dubai", "frankfurt"):
            if site not in order and cast.serving(site) == 1:
                order.append(site)
        return shown if shown["state"] in ("completed", "aborted", "paused") else None

    with traffic(cast, "dubai"), traffic(cast, "frankfurt"):
        shown = stage.wait("the rollout", watch, 90, every=0.3)
    step.claim(shown["state"] == "completed", f"rollout digits-1 is {shown['state']}")
    step.claim(order == ["dubai", "frankfurt"], "ring two (frankfurt) started only on the evidence of ring one (dubai)")
    reports = stage.hub("spoke", "show", "dubai")["reports"]
    chain = [r["state"] for r in reversed(reports)]
    step.claim("committed" in chain, f"dubai's signed reports: {' → '.join(chain)}")
    step.figure(rings=len(shown["rings"]), reports=len(chain))


def traffic(cast: Cast, site: str, images: np.ndarray[Any, Any] | None = None) -> Shop:
    """The site's own people at work."""
    return Shop(cast.callers[site], cast.images(site) if images is None else images, cast.labels(site), name=site)


def serve(cast: Cast, step: Step) -> None:
    for site, caller in cast.callers.items():
        accuracy = caller.accuracy(cast.images(site), cast.labels(site))
        step.claim(accuracy >= 0.93, f"{site}: {len(cast.labels(site))} of its own digits, accuracy {accuracy:.4f}")
        step.figure(**{f"{site}_accuracy": accuracy})


def drift(cast: Cast, step: Step) -> None:
    stage = cast.stage
    turned = turned_images(cast)
    planted, marks = planted_rows(turned)
    stage.hub("drift", "show")
    caller = cast.callers["frankfurt"]
    step.tell(f"frankfurt's scanner turns by {TURN} degrees; {len(marks)} unique pixel values are planted in what it reads")
    for start in range(0, 2 * len(planted), 20):
        caller.infer(np.take(planted, range(start, start + 20), axis=0, mode="wrap"))
    seen = stage.wait("the drift verdict", lambda: alarmed(stage), 60, every=0.5)
    step.claim(seen, f"the hub shows: {seen['words']}")
    log = stage.spoke("frankfurt", "egress", "show")
    kinds = sorted({entry["kind"] for entry in log if entry["decision"] == "allow"})
    step.claim(kinds and set(kinds) <= {"drift_verdict", "ops"}, f"what left through the outbox: {', '.join(kinds)}")
    taps = sorted(stage.folder.glob("frankfurt.tap.*"))
    found, size = search(taps, marks)
    step.claim(
        size > 0 and not found, f"{size:,} bytes left the spoke (read before encryption); planted values found: {len(found)}"
    )
    step.figure(bytes_searched=size, planted=len(marks), found=len(found))


def alarmed(stage: Stage) -> Any:
    """Frankfurt's line in the fleet view, once it shows drift."""
    shown = stage.hub("drift", "show")
    return next((s for s in shown["sites"] if s["site"] == "frankfurt" and s["alarm"]), None)


def turned_images(cast: Cast) -> np.ndarray[Any, Any]:
    """Frankfurt's digits through the turned scanner."""
    turned = rotate(cast.images("frankfurt"), TURN, axes=(2, 3), reshape=False, order=1)
    return np.clip(turned, 0, 16).astype(np.float32)


def adapt(cast: Cast, step: Step) -> None:
    stage, caller = cast.stage, cast.callers["frankfurt"]
    images, labels = turned_images(cast), cast.labels("frankfurt")
    own, test = slice(0, 200), slice(200, None)
    before = caller.accuracy(images[test], labels[test])
    for i in range(200):
        caller.infer(images[own][i : i + 1], f"own-{i}")
        caller.feedback(f"own-{i}", int(labels[i]))
    tuned = stage.spoke("frankfurt", "tune", "--model", "digits", tell=step.tell)
    after = caller.accuracy(images[test], labels[test])
    step.claim(tuned["accepted"], f"200 labelled rows of its own, gate passed: {tuned['reason']}")
    step.claim(after > before + 0.2, f"accuracy on turned digits {before:.3f} → {after:.3f}")
    blobs = sorted((stage.home("frankfurt") / "blobs" / "sha256").iterdir())
    step.claim(
        all(digest_of_file(blob) == f"sha256:{blob.name}" for blob in blobs), "the signed base file is untouched, by its digest"
    )
    heads = [p for p in sorted((stage.home("frankfurt") / "adapters").rglob("*")) if p.is_file() and p.suffix != ".json"]
    left = b"".join(text for tap in stage.folder.glob("frankfurt.tap.*") for text in readings(tap.read_bytes()))
    pieces = [head.read_bytes()[at : at + 32] for head in heads for at in range(0, head.stat().st_size - 32, 32)]
    gone = [piece for piece in pieces if len(set(piece)) > 8 and piece in left]
    step.claim(heads and not gone, f"the adapter never left: none of its {len(pieces)} pieces is among the bytes that did")
    step.figure(before=before, after=after, rows=200)


def bad_release(cast: Cast, step: Step) -> None:
    stage = cast.stage
    home = stage.home("hub")
    sabotage(home / "builds" / "digits" / "1", home / "builds" / "digits" / "2", version=2, overridden_by="a tired engineer")
    stage.hub("model", "publish", "digits@2")
    claim = stage.hub("model", "show", "digits@2")
    step.tell(f"digits@2 is signed and released; it claims {max(claim['claims'].values()):.3f}; its head is damaged")
    file = stage.folder / "digits-2.yaml"
    file.write_text(BAD)
    stage.hub("rollout", "apply", file)
    with traffic(cast, "dubai") as shop:
        shown = stage.wait("the rollout to end", lambda: ended(stage, "digits-2"), 120, every=0.3)
        stage.wait("dubai to serve v1 again", lambda: cast.serving("dubai") == 1, 30)
    step.claim(shown["state"] == "aborted", f"the rollout aborted by itself: {shown['reason']}")
    reports = [r for r in stage.hub("spoke", "show", "dubai")["reports"] if r["version"] == 2]
    back = next(r for r in reports if r["state"] == "rolled_back")
    evidence = back["evidence"]
    step.claim(
        back["reason"] == "accuracy_below_claim",
        f"evidence: {evidence['labelled_correct']} of {evidence['labelled']} labelled rows right",
    )
    step.claim(
        evidence["shadow_rows"] > 0,
        f"in shadow it differed from the champion on {evidence['shadow_disagreements']} of {evidence['shadow_rows']} rows",
    )
    received, total = evidence["bytes_received"], evidence["bytes_total"]
    step.claim(evidence["used_delta"] and received < total, f"it came as a delta: {received:,} bytes instead of {total:,}")
    step.claim(cast.serving("dubai") == 1, "the canary is back on v1")
    never = not [r for r in stage.hub("spoke", "show", "frankfurt")["reports"] if r["version"] == 2]
    step.claim(never, "ring two never saw it")
    step.claim(shop.failed == 0, f"{shop.sent} requests during switch and way back, {shop.failed} failed {shop.last_error}")
    step.claim(evidence["rollback_ms"] is not None, f"from detection to last-good: {evidence['rollback_ms']} ms")
    step.figure(
        rollback_ms=evidence["rollback_ms"], requests=shop.sent, failed=shop.failed, delta_bytes=received, full_bytes=total
    )


def transfer(cast: Cast, step: Step) -> None:
    stage = cast.stage
    builds, held = stage.home("hub") / "builds" / "digits", list[int]()
    size = picture_book(builds / "1", builds / "3", version=3)
    stage.hub("model", "publish", "digits@3", "--fallback", 1)
    step.tell(f"digits@3 brings a picture book of {size:,} bytes: {-(-size // BLOCK)} blocks of 128 KiB, over MQTT")
    second_spoke(cast)
    both = carry(stage, "pictures-dubai", "dubai", spokes=2)
    copies = both.sent / size
    step.claim(copies <= 1.25, f"two spokes at dubai cost the hub {both.sent:,} bytes: {copies:.2f} copies")
    with Shop(cast.callers["frankfurt"], turned_images(cast), None, name="frankfurt") as shop:
        alone = carry(
            stage,
            "pictures-frankfurt",
            "frankfurt",
            spokes=1,
            meanwhile=lambda: held.append(kill_on_the_way(stage, "frankfurt", size)),
        )
    again = max(0, alone.received - (size - held[0]))
    step.tell(f"frankfurt's agent was killed (SIGKILL) when {held[0]:,} bytes were there")
    step.claim(again <= 2 << 20, f"it went on from there: {alone.received:,} bytes more, {again:,} of them for the second time")
    step.claim(shop.failed == 0, f"meanwhile frankfurt answered {shop.sent} requests, {shop.failed} failed {shop.last_error}")
    step.figure(bytes=size, copies_for_two_spokes=copies, held_when_killed=held[0], received_after=alone.received, twice=again)


def second_spoke(cast: Cast) -> None:
    """Dubai gets another one, in the same zone. It is brought to what its ring has, without being asked for."""
    stage, (zone, regime) = cast.stage, SITES["dubai"]
    code = stage.hub("spoke", "invite", "dubai/second", "--zone", zone, "--regime", regime)["code"]
    stage.spoke("dubai-2", "enrol", "--hub", cast.address["url"], "--code", code)
    stage.start("dubai-2", ["spoke", "run"], stage.home("dubai-2"))
    stage.wait("its server", (stage.home("dubai-2") / "run" / "server.port").exists, 30)
    with Shop(cast.caller("dubai-2"), cast.images("dubai"), cast.labels("dubai"), name="dubai-2", pause=0.05):
        stage.wait("dubai's second spoke to catch up", lambda: cast.serving("dubai/second") == 1, 60, every=0.5)


def sideload(cast: Cast, step: Step) -> None:
    stage = cast.stage
    bundle, receipts = stage.folder / "clinic.bundle", stage.folder / "clinic.receipts"
    stage.hub("bundle", "export", "--site", "clinic", "--model", "digits@1", "--out", bundle, "--soak", 2)
    cut_off = no_network()
    applied = stage.spoke("clinic", "sideload", "apply", bundle, prefix=cut_off)
    where = "in an empty network namespace" if cut_off else "without a network"
    step.claim(applied, f"{bundle.stat().st_size:,} bytes on a stick, applied {where}")
    stage.start("clinic", ["spoke", "run", "--offline"], stage.home("clinic"))
    port = stage.home("clinic") / "run" / "server.port"
    stage.wait("the clinic's server", port.exists, 20)
    caller = cast.caller("clinic")
    accuracy = caller.accuracy(cast.images("clinic"), cast.labels("clinic"))
    step.claim(accuracy >= 0.93, f"clinic serves its own digits: accuracy {accuracy:.4f}")
    stage.spoke("clinic", "sideload", "receipts", receipts)
    step.claim(cast.serving("clinic") is None, "before the receipts the hub does not know")
    stage.hub("receipts", "import", receipts)
    step.claim(cast.serving("clinic") == 1, "carried back and imported: the hub knows that clinic serves digits@1")
    step.figure(bundle_bytes=bundle.stat().st_size, clinic_accuracy=accuracy)


def no_network() -> tuple[str, ...]:
    """A prefix that runs a command where there is no network at all, if this user may."""
    import subprocess

    prefix = ("unshare", "--net")
    try:
        return prefix if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0 else ()
    except FileNotFoundError:
        return ()


STEPS = (
    ("hub_up", "The hub starts: keys, device CA, API, registry, broker", hub_up),
    ("train", "A small CNN is trained on the hub's share of the digits", train),
    ("shave", "It is exported, quantized, gated, and packed with its proof", shave),
    ("publish", "It is signed, released and pulled back", publish),
    ("enrol", "Three spokes enrol: two online, one by files", enrol),
    ("rollout", "v1 goes out in two rings over MQTT", rollout),
    ("serve", "Each site calls its own spoke", serve),
    ("drift", "Frankfurt's scanner turns; a verdict leaves, nothing else", drift),
    ("adapt", "Frankfurt adapts the head on 200 rows of its own", adapt),
    ("bad_release", "v2 is worse than it claims; the canary finds out", bad_release),
    ("transfer", "A large v3 travels: one copy for two spokes, and on from where it was after a kill", transfer),
    ("sideload", "The clinic gets it on a stick, and its receipts come back", sideload),
)

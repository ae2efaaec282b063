"""How a large version travels: in blocks, one copy for two spokes, and on from where it was when the agent is killed.

digits@3 is digits@1 with a picture book: the hub's own digits, enlarged, so that there is enough to carry to see it on its way.
"""

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from examples.demo.report import ClaimFailed
from examples.demo.rollouts import PICTURES
from examples.demo.stage import Stage
from hub.client.http import HubClient
from hub.train.datasets import digits
from model_formats.build.model_card import card
from model_formats.documents.evidence import Evidence
from model_formats.documents.feature_contract import FeatureContract
from model_formats.documents.package_spec import CARD, CONTRACT, EVIDENCE, PROVENANCE, SPEC, PackageSpec
from spoke_agent.daemon.status import ask_agent
from spoke_agent.site.home import SpokeHome

__all__ = ["LINE", "Carried", "carry", "ended", "kill_on_the_way", "picture_book"]

LINE = """\
# Narrow enough to see what happens on it; and on a busy machine two spokes may take a while to begin together.
block_bytes_per_s = 6_000_000
block_gather_s = 3
"""
BLOCK = 128 * 1024


def picture_book(folder: Path, out: Path, *, version: int) -> int:
    """Copy a built model folder to `out` as `version`, with a picture book; returns the book's size in bytes."""
    shutil.copytree(folder, out)
    spec = PackageSpec.parse((out / SPEC).read_bytes()).replace(version=version)
    contract, evidence = FeatureContract.parse((out / CONTRACT).read_bytes()), Evidence.parse((out / EVIDENCE).read_bytes())
    (out / SPEC).write_bytes(spec.canonical())
    (out / CARD).write_text(card(spec, contract, evidence, None))
    (out / PROVENANCE).unlink()
    shares, book = digits(), out / "assets" / "pictures.npz"
    book.parent.mkdir(exist_ok=True)
    np.savez(book, train=enlarged(shares.train.inputs["image"]), held_out=enlarged(shares.held_out.inputs["image"]))
    return book.stat().st_size


def enlarged(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Eight times as wide and as high."""
    return np.kron(images, np.ones((8, 8), np.float32))


@dataclass(frozen=True, slots=True)
class Carried:
    """Bytes that the hub sent, and that a spoke says (in its signed report) it received since its agent last started."""

    sent: int
    received: int


def carry(stage: Stage, name: str, site: str, *, spokes: int, meanwhile: Callable[[], object] = lambda: None) -> Carried:
    """Roll digits@3 out to the spokes of one site, and wait until all have committed. `meanwhile`: while it is on its way."""
    file, before = stage.folder / f"{name}.yaml", sent(stage)
    file.write_text(PICTURES.format(name=name, site=site, spokes=spokes))
    stage.hub("rollout", "apply", file)
    meanwhile()
    shown = stage.wait(f"rollout {name}", lambda: ended(stage, name), 90, every=0.3)
    if shown["state"] != "completed":
        raise ClaimFailed(f"rollout {name} is {shown['state']}: {shown['reason']}")
    reports = stage.hub("spoke", "show", site)["reports"]
    committed = next(r for r in reports if (r["version"], r["state"]) == (3, "committed"))
    return Carried(sent(stage) - before, committed["evidence"]["bytes_received"])


def ended(stage: Stage, name: str) -> Any:
    """The rollout, once it has ended."""
    shown = stage.hub("rollout", "show", name)
    return shown if shown["state"] in ("completed", "aborted", "paused") else None


def sent(stage: Stage) -> int:
    """Bytes that the hub has sent as blocks, by its own metrics."""
    with HubClient.local(stage.home("hub")) as hub:
        text = hub.http.get("/metrics").raise_for_status().text
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("spokeshave_hub_block_bytes_total ")))


def kill_on_the_way(stage: Stage, site: str, size: int) -> int:
    """SIGKILL a spoke's agent when half of a file of that size is there; returns how many bytes of it were."""
    home = SpokeHome(stage.home(site))

    def half() -> int:
        here = ask_agent(home).get("arriving", {})
        file = here.get("digits", {"bytes": 0, "of": 0})  # type: ignore[attr-defined]
        return int(file["bytes"]) if file["of"] == size and 2 * file["bytes"] >= size else 0

    held = int(stage.wait("half of the picture book", half, 60, every=0.01))
    os.kill(int((home.run / "agent.pid").read_text()), signal.SIGKILL)
    return held

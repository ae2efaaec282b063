"""The demo is the end-to-end test: real processes, a real broker, real data; each step checks its own claims.

Where this user may make network namespaces, hub and sites are hosts on a recorded network (tests/network), and nobody may have
asked for a name or tried an address but those of the hub. Elsewhere strace watches the same processes.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.network.gateway import HUB_ADDRESS, HUB_NAME
from tests.network.hosts import Hosts, allowed, unwatched
from tests.network.traced import strangers, traced

REPOSITORY = Path(__file__).parents[2]
STEPS = [
    "hub_up",
    "train",
    "shave",
    "publish",
    "enrol",
    "rollout",
    "serve",
    "drift",
    "adapt",
    "bad_release",
    "transfer",
    "sideload",
]

pytestmark = [pytest.mark.slow, pytest.mark.mosquitto, pytest.mark.timeout(480)]


@pytest.mark.skipif(not allowed(), reason="network namespaces cannot be made here; strace watches instead")
def test_every_step_of_the_story_holds_and_nobody_but_the_hub_is_called(tmp_path: Path) -> None:
    with Hosts(tmp_path / "network", ["hub", "dubai", "frankfurt", "clinic"]) as hosts:
        sites = {name: hosts.prefix(name) for name in hosts.names[1:]}
        tell(tmp_path / "demo", hosts.prefix("hub"), {**unwatched(), **hosts.environment()}, "--hosts", json.dumps(sites))
        heard = hosts.heard()
    hub = json.loads((tmp_path / "demo" / "dubai" / "identity" / "identity.json").read_text())["hub"]
    ports = (hub["url"].rpartition(":")[2], hub["broker_port"])
    ours = {HUB_NAME, *(f"tcp {HUB_ADDRESS}:{port}" for port in ports)}
    assert heard["hub"] <= {HUB_NAME}
    assert heard["dubai"] == ours, "the recorder hears what is called"
    assert heard["frankfurt"] == ours
    assert heard["clinic"] == set()


@pytest.mark.skipif(allowed(), reason="network namespaces see more")
def test_every_step_of_the_story_holds_and_nobody_is_called_over_a_network(tmp_path: Path) -> None:
    record = tmp_path / "record"
    tell(tmp_path / "demo", traced(record), unwatched())
    assert strangers(record) == set()


def tell(folder: Path, prefix: tuple[str, ...], environment: dict[str, str], *more: str) -> None:
    """Run the demo, and hold it to its own report."""
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "examples.demo", "--folder", str(folder), *more],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=460,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    report = json.loads((folder / "report.json").read_text())
    assert report["ok"] is True
    assert [step["name"] for step in report["steps"]] == STEPS
    assert all(step["ok"] and step["figures"] for step in report["steps"])
    assert [line for line in claims_of_the_readme() if not re.search(pattern_of(line), done.stdout)] == []


def claims_of_the_readme() -> list[str]:
    """The lines with a tick that the README shows of a run."""
    return re.findall(r"^   (✓ .+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)


def pattern_of(line: str) -> str:
    """The same words with any figures. What depends on the machine (states on the way, network namespaces) may differ."""
    words = line.partition(" →" if ": admitted" in line else " in an empty network namespace")[0]
    return re.sub(r"\d(?:[\d,.]*\d)?", r"[\\d,.]+", re.escape(words).replace(r"\,", ",").replace(r"\.", "."))

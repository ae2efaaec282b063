"""`spoke data`, `spoke tune`, `spoke adapter` and `spoke egress` on a real home, as a technician would type them."""

import csv
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hub.train.corruptions import turn
from hub.train.datasets import digits
from model_formats.core.console import run
from model_formats.package import pack
from provisioning.identity.ca import DeviceCA
from provisioning.identity.identity import HubAddress, IdentityDocument, device_csr
from spoke_agent.cli import group
from spoke_agent.outbox.outbox import Outbox
from spoke_agent.site.slots import ModelSlots, Slot, Slots, edit_slots, read_slots, write_slots
from sync.core.clock import SystemClock
from sync.core.types import SpokeId
from sync.protocol.egress import Ops
from sync.trust.keys import device_signer, save_signer
from tests.samples.adaptable import write_adaptable


@pytest.fixture
def home(tmp_path: Path, session_ca: DeviceCA) -> Path:
    """An enrolled spoke that serves the adaptable digits; its server is not running."""
    home, signer = tmp_path / "home", device_signer()
    folder = home / "identity"
    save_signer(folder / "device.key", signer)
    spoke = SpokeId("frankfurt")
    (folder / "device.crt").write_bytes(session_ca.sign_csr(device_csr(signer), spoke, now=datetime.now(UTC)))
    (folder / "ca.crt").write_bytes(b"")
    (folder / "root.json").write_bytes(b"{}")
    hub = HubAddress(url="https://localhost:1", broker_host="localhost", broker_port=1)
    document = IdentityDocument(site="frankfurt", spoke="main", zone="eu", regime="gdpr", hub=hub)
    (folder / "identity.json").write_bytes(document.canonical())
    index = pack(write_adaptable(tmp_path / "source"), home)
    champion = Slot(version=1, index=index, variant="onnx-fp32")
    write_slots(home / "slots.json", Slots(models={"digits": ModelSlots(champion=champion)}))
    return home


def spoke(home: Path, capsys: pytest.CaptureFixture[str], *words: str, status: int = 0) -> Any:
    assert run(group, ["--home", str(home), "--json", *words]) == status
    seen = capsys.readouterr()
    return json.loads(seen.out) if status == 0 else json.loads(seen.err)


def turned_csv(path: Path, rows: slice = slice(0, 200), label: str = "label") -> Path:
    share = digits().sites["frankfurt"].take(np.arange(400)[rows])
    images = turn(share.inputs["image"], 35).reshape(-1, 64)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"image.{i}" for i in range(64)] + [label])
        writer.writerows([*map(float, row), int(digit)] for row, digit in zip(images, share.labels, strict=True))
    return path


def test_a_whole_model_is_tuned_by_a_process_of_low_priority(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spoke(home, capsys, "data", "import", str(turned_csv(tmp_path / "rows.csv")), "--model", "digits")
    words = [sys.executable, "-m", "spoke_agent", "--home", str(home), "--json", "tune", "--model", "digits", "--method", "full"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    tuned = json.loads(done.stdout)
    assert tuned["method"] == "full"
    assert tuned["gate"]["after"] > tuned["gate"]["before"] + 0.3
    (listed,) = spoke(home, capsys, "adapter", "list")
    assert (listed["method"], listed["in_use"]) == ("full", True)


def test_import_tune_use_and_erase(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    file = turned_csv(tmp_path / "rows.csv")
    assert spoke(home, capsys, "data", "import", str(file), "--model", "digits", "--dry-run")["rows"] == 200
    assert spoke(home, capsys, "data", "list") == []
    assert spoke(home, capsys, "data", "import", str(file), "--model", "digits")["labelled"] == 200
    tuned = spoke(home, capsys, "tune", "--model", "digits")
    assert tuned["accepted"]
    assert not tuned["serving"]
    assert tuned["gate"]["after"] > tuned["gate"]["before"] + 0.2
    (listed,) = spoke(home, capsys, "adapter", "list")
    assert listed["in_use"]
    assert listed["trusted"]
    spoke(home, capsys, "adapter", "use", "--model", "digits", "--none")
    spoke(home, capsys, "adapter", "use", "--model", "digits", tuned["adapter"])
    erased = spoke(home, capsys, "data", "erase", "--all")
    assert erased["rows"] == 200
    assert erased["adapters"] == [tuned["adapter"]]
    assert spoke(home, capsys, "adapter", "list") == []


def test_import_from_npz_and_a_folder(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    share = digits().sites["clinic"]
    folder = tmp_path / "rows"
    folder.mkdir()
    np.savez(folder / "a.npz", image=share.inputs["image"][:50], label=share.labels[:50])
    np.savez(folder / "b.npz", image=share.inputs["image"][50:80])
    found = spoke(home, capsys, "data", "import", str(folder), "--model", "digits")
    assert (found["rows"], found["labelled"], found["files"]) == (80, 50, ["a.npz", "b.npz"])
    (row,) = spoke(home, capsys, "data", "list")
    assert row["correct"] > 40  # the champion answered them, and is right on most


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text.replace("image.7,", "image.seven,", 1), "'image.7' is missing"),
        (lambda text: text.replace("0.0", "nan", 1), "not finite"),
        (lambda text: text.replace("0.0", "zero", 1), "is not a number"),
        (lambda text: text.rsplit(",", 1)[0] + ",12\n", "label 12"),
        (lambda text: text + "1,2,3\n", "number of columns"),
        (lambda text: text.split("\n")[0] + "\n", "no rows"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_nothing_is_stored(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Any, told: str
):
    file = turned_csv(tmp_path / "rows.csv", slice(0, 5))
    file.write_text(spoil(file.read_text().replace("\r\n", "\n")))
    problem = spoke(home, capsys, "data", "import", str(file), "--model", "digits", status=2)
    assert problem["error"] == "import_refused"
    assert told in problem["message"]
    assert spoke(home, capsys, "data", "list") == []


def test_the_egress_log_is_shown_checked_and_explained(home: Path, capsys: pytest.CaptureFixture[str]):
    left: list[bytes] = []
    box = Outbox(
        home,
        SpokeId("frankfurt"),
        "gdpr",
        clock=SystemClock(),
        send=lambda _, envelope: left.append(envelope),
        seal=lambda record: record.canonical(),
    )
    box.offer(Ops(version=(0, 1, 0), disk_free_percent=50, memory_free_percent=60, uptime_hours=3))
    box.close()
    (shown,) = spoke(home, capsys, "egress", "show", "--exact")
    assert shown["payload"].encode() == left[0]  # to the byte
    assert (shown["kind"], shown["decision"], shown["sent"]) == ("ops", "allow", True)
    assert spoke(home, capsys, "egress", "verify")["left"] == 1
    assert "hub ceiling" in spoke(home, capsys, "egress", "explain", "1")["because"]
    packed = spoke(home, capsys, "egress", "pack", "--out", str(home / "evidence"))
    assert (packed["left"], packed["chain"]["whole"]) == (1, True)
    assert "ops" in Path(packed["files"][1]).read_text()
    assert spoke(home, capsys, "egress", "switch", "sealed")["sovereignty"] == "sealed"
    assert spoke(home, capsys, "egress", "policy")["sovereignty"] == "sealed"


def test_a_lost_site_key_is_told_and_can_be_given_up(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spoke(home, capsys, "data", "import", str(turned_csv(tmp_path / "r.csv", slice(0, 5))), "--model", "digits")
    (home / "identity" / "site.key").unlink()
    assert spoke(home, capsys, "data", "list", status=6)["error"] == "data_key_lost"
    assert spoke(home, capsys, "data", "erase", "--all")["rows"] == 0
    assert spoke(home, capsys, "data", "list") == []


@pytest.mark.parametrize(
    "words", [["egress", "show"], ["egress", "verify"], ["egress", "policy"], ["data", "list"], ["adapter", "list"]]
)
def test_commands_speak_to_people_too(home: Path, capsys: pytest.CaptureFixture[str], words: list[str]):
    assert run(group, ["--home", str(home), *words]) == 0
    assert capsys.readouterr().out


def test_a_dry_run_of_erasing_counts_the_rows_that_would_go_and_keeps_them(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    spoke(home, capsys, "data", "import", str(turned_csv(tmp_path / "rows.csv")), "--model", "digits")
    kept = spoke(home, capsys, "data", "list")
    for words, rows in (("--subject nobody", 0), ("--before 2020-01-01", 0), ("--all", 200)):
        assert spoke(home, capsys, "data", "erase", *words.split(), "--dry-run")["rows"] == rows
    assert spoke(home, capsys, "data", "list") == kept
    assert run(group, ["--home", str(home), "data", "erase", "--all", "--dry-run"]) == 0
    assert "200 rows would be erased" in capsys.readouterr().out


def test_status_tells_of_a_challenger(home, capsys):
    path = home / "slots.json"
    champion = read_slots(path).models["digits"].champion
    before = champion.replace(version=7, index="sha256:" + "7" * 64)
    edit_slots(path, "digits", lambda m: m.replace(last_good=before))
    spoke(home, capsys, "challenger", "set", "--model", "digits", "--version", "7", "--percent", "10")
    (row,) = spoke(home, capsys, "status")["models"]
    assert (row["challenger"], row["challenger_percent"]) == (7, 10)
    assert spoke(home, capsys, "challenger", "show")[0]["rests"]  # no server runs here
    spoke(home, capsys, "challenger", "stop", "--model", "digits")
    (row,) = spoke(home, capsys, "status")["models"]
    assert (row["challenger"], row["challenger_percent"]) == (None, 0)

import json
import subprocess
import sys

import pytest

from spoke_agent.cli import group
from spoke_agent.doctor import examine
from spoke_agent.door import AgentAway, Door, DoorRefused, knock
from spoke_agent.home import SpokeHome
from spoke_agent.settings import SpokeSettingsInvalid, load_settings
from sync.trust.errors import DirectiveRefused
from sync.types import Reason
from tests.spoke_agent.agent.conftest import ME


def ailments(field):
    return {finding.ailment: finding for finding in examine(field.home)}


def test_a_home_without_an_identity_has_one_ailment(tmp_path):
    (finding,) = examine(SpokeHome(tmp_path))
    assert finding.ailment == "identity"
    assert "spoke enrol" in finding.remedy


def test_a_stopped_spoke_without_metadata_says_so(field):
    found = ailments(field)
    assert "agent" in found["processes"].issue
    assert "trust" in found


def test_damage_to_a_served_file_is_found(field):
    index = field.package(1)
    field.start()
    field.hub.want(ME, index, 1)
    field.settled()
    assert set(ailments(field)) == {"processes"}
    from model_formats.package import open_package
    from sync.store import BlobStore

    victim = open_package(BlobStore(field.home.store), index).path("variants/onnx-int8/model.onnx")
    victim.write_bytes(b"rust" + victim.read_bytes()[4:])
    assert "digits@1" in ailments(field)["files"].issue


def test_open_keys_are_found(field):
    (field.home.identity / "device.key").chmod(0o644)
    assert "chmod 600" in ailments(field)["identity"].remedy


def test_every_command_of_the_table_can_be_imported():
    for name in group.table:
        assert group.get_command(None, name) is not None


def test_settings_that_cannot_be_read_are_found_once_under_their_own_name(field, monkeypatch):
    monkeypatch.setenv("SPOKE_TICK_S", "often")
    found = ailments(field)
    assert "tick_s" in found["settings"].issue
    assert "disk" not in found


def test_a_policy_that_closes_the_door_by_mistake_is_found(field):
    (field.home.root / "egress.yaml").write_text("allow: [\n")
    found = ailments(field)["egress"]
    assert "not a policy" in found.issue
    assert "Nothing leaves meanwhile" in found.remedy


@pytest.mark.parametrize("text", ["tick_s = -1", "nonsense = 1", "download_hours = 'noon'", "= broken"])
def test_bad_settings_are_named(tmp_path, text):
    (tmp_path / "spoke.toml").write_text(text)
    with pytest.raises(SpokeSettingsInvalid):
        load_settings(SpokeHome(tmp_path))


def test_the_door_answers_in_lines_and_passes_errors_on(tmp_path):
    def count(question, tell):
        for i in range(question["n"]):
            tell(i)
        return "done"

    def refuse(question, tell):
        raise DirectiveRefused(Reason.WRONG_RECIPIENT, "not for us")

    door = Door(tmp_path / "agent.sock", {"count": count, "refuse": refuse})
    door.open()
    try:
        assert list(knock(tmp_path / "agent.sock", "count", n=3)) == [0, 1, 2, "done"]
        with pytest.raises(DoorRefused, match="not for us") as caught:
            list(knock(tmp_path / "agent.sock", "refuse"))
        assert (caught.value.code, caught.value.exit) == ("directive_refused", 4)
        with pytest.raises(DoorRefused):
            list(knock(tmp_path / "agent.sock", "dance"))
        assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o600
    finally:
        door.close()
    with pytest.raises(AgentAway):
        list(knock(tmp_path / "agent.sock", "count", n=1))


def test_a_process_that_only_the_operator_can_mend_ends_the_run(tmp_path):
    children = {
        "server": [sys.executable, "-c", "import time; time.sleep(60)"],
        "agent": [sys.executable, "-c", "raise SystemExit(2)"],
    }
    code = (
        "import sys; from pathlib import Path; from spoke_agent.supervise import Supervisor;"
        f"sys.exit(Supervisor(Path({str(tmp_path)!r}), {children!r}).run())"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 2
    assert not list(tmp_path.glob("*.pid"))


def test_status_tells_the_history_without_an_agent(field):
    index = field.package(1)
    field.start()
    field.hub.want(ME, index, 1)
    field.settled()
    field.stop()
    line = [sys.executable, "-m", "spoke_agent", "--json", "--home", str(field.home.root), "status"]
    told = json.loads(subprocess.run(line, capture_output=True, check=True, timeout=60).stdout)
    assert (told["agent"], told["server"], told["models"][0]["state"]) == (False, False, "committed")
    assert told["history"][0]["state"] == "committed"

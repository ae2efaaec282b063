import json
import re
import subprocess
import sys
from datetime import timedelta

import pytest

from model_formats.core.console import run
from model_formats.core.cpu_class import this_class
from spoke_agent.cli import group
from spoke_agent.daemon.local_socket import AgentAway, LocalCommandRefused, LocalServer, call_agent
from spoke_agent.daemon.status import read_status
from spoke_agent.doctor import examine
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import SpokeSettingsInvalid, load_settings
from spoke_agent.site.slots import read_slots
from sync.core.types import Reason
from sync.trust.errors import DirectiveRefused
from tests.spoke_agent.daemon.conftest import ME
from tests.spoke_agent.fakes import Behaviour


def ailments(field):
    return {finding.check: finding for finding in examine(field.home)}


def test_a_home_without_an_identity_has_one_ailment(tmp_path):
    (finding,) = examine(SpokeHome(tmp_path))
    assert finding.check == "identity"
    assert "spoke enrol" in finding.advice


def test_a_stopped_spoke_without_metadata_says_so(field):
    found = ailments(field)
    assert "agent" in found["processes"].found
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
    assert "digits@1" in ailments(field)["files"].found


def test_open_keys_are_found(field):
    (field.home.identity / "device.key").chmod(0o644)
    assert "chmod 600" in ailments(field)["identity"].advice


def test_every_command_of_the_table_can_be_imported():
    for name in group.table:
        assert group.get_command(None, name) is not None


def test_settings_that_cannot_be_read_are_found_once_under_their_own_name(field, monkeypatch):
    monkeypatch.setenv("SPOKE_TICK_S", "often")
    found = ailments(field)
    assert "tick_s" in found["settings"].found
    assert "disk" not in found


def test_a_policy_that_closes_the_door_by_mistake_is_found(field):
    (field.home.root / "egress.yaml").write_text("allow: [\n")
    found = ailments(field)["egress"]
    assert "not a policy" in found.found
    assert "Nothing leaves meanwhile" in found.advice


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

    local_server = LocalServer(tmp_path / "agent.sock", {"count": count, "refuse": refuse})
    local_server.open()
    try:
        assert list(call_agent(tmp_path / "agent.sock", "count", n=3)) == [0, 1, 2, "done"]
        with pytest.raises(LocalCommandRefused, match="not for us") as caught:
            list(call_agent(tmp_path / "agent.sock", "refuse"))
        assert (caught.value.code, caught.value.exit) == ("directive_refused", 4)
        with pytest.raises(LocalCommandRefused):
            list(call_agent(tmp_path / "agent.sock", "dance"))
        assert (tmp_path / "agent.sock").stat().st_mode & 0o777 == 0o600
    finally:
        local_server.close()
    with pytest.raises(AgentAway):
        list(call_agent(tmp_path / "agent.sock", "count", n=1))


def test_a_process_that_only_the_operator_can_mend_ends_the_run(tmp_path):
    children = {
        "server": [sys.executable, "-c", "import time; time.sleep(60)"],
        "agent": [sys.executable, "-c", "raise SystemExit(2)"],
    }
    code = (
        "import sys; from pathlib import Path; from spoke_agent.daemon.supervisor import Supervisor;"
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


def test_status_shows_the_plan_with_and_without_an_agent(field, capsys):
    opens = field.hub.clock.now() + timedelta(hours=2)
    hours = f"{opens:%H:%M}-{opens + timedelta(hours=1):%H:%M}"
    field.home.settings.write_text(f"switch_hours = '{hours}'\n")
    field.start(switch_hours=hours)
    field.hub.want(ME, field.package(1), 1)
    field.settled("armed")
    for _ in range(2):
        capsys.readouterr()
        assert run(group, ["--home", str(field.home.root), "status", "--plan"]) == 0
        lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
        first = lines.index("digits, if all goes well:") + 1
        assert re.match(r"1\. digits@1 armed: wait (1 h 5\d|2 h 0) min for switch_hours", lines[first])
        assert lines[first + 1] == "2. digits@1 probation: make it the champion: it answers callers"
        assert run(group, ["--home", str(field.home.root), "--json", "status", "--plan"]) == 0
        (plan,) = json.loads(capsys.readouterr().out)["plan"]
        assert [p["state"] for p in plan["ahead"]] == ["armed", "probation", "committed"]
        assert plan["ahead"][0]["steps"][0]["kind"] == "wait_for_hours"
        field.stop()
    assert run(group, ["--home", str(field.home.root), "--json", "status"]) == 0
    assert "plan" not in json.loads(capsys.readouterr().out)


def _off(field, **how):
    """Version 1 serves; version 2 was asked for and ended as `how` says."""
    first, second = field.package(1), field.package(2)
    field.start()
    field.hub.want(ME, first, 1)
    field.settled()
    field.server.behaviour[2] = Behaviour(**how)
    field.hub.want(ME, second, 2)


def test_a_package_that_is_off_here_is_told_by_variant(field):
    _off(field, golden=False)
    field.settled("failed")
    issue = ailments(field)["updates"].found
    assert "onnx-int8: golden_mismatch, onnx-fp32: golden_mismatch; CPU class " in issue


def test_another_variant_that_serves_is_no_ailment_and_is_shown(field):
    _off(field, off={"onnx-int8": Reason.GOLDEN_MISMATCH})
    field.until(lambda: read_slots(field.home.slots).models["digits"].champion.variant == "onnx-fp32")
    field.settled()
    assert "updates" not in ailments(field)
    found = read_status(field.home)
    assert found.cpu_class == this_class()
    (model,) = found.models
    assert [(p.variant, p.reason) for p in model.passed_over] == [("onnx-int8", Reason.GOLDEN_MISMATCH)]
    told = field.hub.reports[ME][-1].evidence
    assert (told.cpu_class, told.variant, told.engine) == (this_class(), "onnx-fp32", "onnxruntime")


def test_status_is_shown_with_the_variants_that_were_passed_over(field, capsys):
    _off(field, off={"onnx-int8": Reason.LOAD_FAILED})
    field.until(lambda: read_slots(field.home.slots).models["digits"].champion.variant == "onnx-fp32")
    field.settled()
    capsys.readouterr()
    assert run(group, ["--home", str(field.home.root), "status"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert f"CPU class {this_class()}" in text
    assert "digits@2 passed over onnx-int8 here: load_failed" in text
    assert run(group, ["--home", str(field.home.root), "--json", "status"]) == 0
    (model,) = json.loads(capsys.readouterr().out)["models"]
    assert model["passed_over"] == [{"variant": "onnx-int8", "reason": "load_failed"}]

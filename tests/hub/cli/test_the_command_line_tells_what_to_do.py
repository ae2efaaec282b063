"""What an operator ran into by hand: whose token counts, what is said of a hub that was killed, what goes with a code."""

import json
import subprocess
import sys

import pytest

from hub.app.lock import locked

PLAN = """
apiVersion: spokeshave/v1
kind: Rollout
metadata: {name: digits-1}
spec: {model: digits@1, rings: [{name: first, sites: [dubai]}, {name: rest, sites: ["*"]}]}
"""


@pytest.mark.mosquitto
def test_a_token_in_the_environment_counts_on_the_hubs_own_machine_too(server, line, monkeypatch):
    bob = line.ok("token", "create", "bob", "--role", "auditor")["token"]
    monkeypatch.setenv("HUB_TOKEN", bob)
    status, _, error = line("spoke", "invite", "dubai", "--zone", "me", "--regime", "ae-pdpl")
    assert (status, json.loads(error)["error"]) == (2, "not_authorised")
    assert line.ok("audit", "verify")["ok"]
    monkeypatch.setenv("HUB_TOKEN", "ssh1_nobodys")
    status, _, error = line("spoke", "list")
    assert (status, json.loads(error)["error"]) == (2, "not_authenticated")


@pytest.mark.mosquitto
def test_an_invitation_says_where_to_enrol_and_until_when(server, line):
    told = line.ok("spoke", "invite", "dubai", "--zone", "me", "--regime", "ae-pdpl", "--hours", "2")
    assert told["hub"] == server.address.url
    assert told["expires"].endswith("Z")
    status, code, said = line("spoke", "invite", "lyon", "--zone", "eu", "--regime", "gdpr", as_json=False)
    assert status == 0
    assert f"spoke enrol --hub {server.address.url} --code {code.strip()}" in said


@pytest.mark.mosquitto
def test_a_spoke_that_never_came_was_seen_never(server, line, tmp_path):
    from provisioning.identity.enrol import begin

    code = line.ok("spoke", "invite", "dubai", "--zone", "me", "--regime", "ae-pdpl")["code"]
    request, grant = tmp_path / "request.json", tmp_path / "grant.json"
    request.write_bytes(begin(tmp_path / "dubai", code).canonical())
    line.ok("spoke", "admit", request, grant)
    status, shown, _ = line("spoke", "show", "dubai", as_json=False)
    assert status == 0
    assert "last seen never" in shown
    status, _, error = line("spoke", "admit", grant, tmp_path / "again.json")
    assert status == 4
    assert str(grant) in json.loads(error)["message"]


def test_doctor_says_that_a_killed_hub_does_not_answer(home, line, free_port):
    home.address.parent.mkdir(exist_ok=True)
    home.address.write_text(json.dumps({"url": f"https://127.0.0.1:{free_port}", "ca": str(home.ca / "ca.crt")}))
    status, findings, error = line("doctor")
    assert status == 1, error
    found = {f["check"]: f for f in findings}
    assert not found["running"]["ok"]
    assert "does not answer" in found["running"]["found"]
    assert "hub up" in found["running"]["advice"]


def test_a_second_hub_is_refused_before_a_server_is_imported(home):
    program = (
        "import sys; from hub.cli import group; from model_formats.core.console import run;"
        f"status = run(group, ['--home', {str(home.root)!r}, 'up']);"
        "sys.exit(status if not {'uvicorn', 'fastapi', 'sqlalchemy', 'tuf'} & set(sys.modules) else 99)"
    )
    with locked(home):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "hub_running" in done.stderr
    assert "`hub worker`" in done.stderr


@pytest.mark.parametrize(("rings", "told"), [("5,many", "whole numbers"), ("5", "2 rings"), ("5,0", "at least one")])
def test_sizes_that_cannot_be_simulated_are_a_usage_error(line, tmp_path, rings, told):
    (tmp_path / "plan.yaml").write_text(PLAN)
    status, _, error = line("simulate", tmp_path / "plan.yaml", "--rings", rings, "--runs", "1")
    assert status == 2
    assert told in json.loads(error)["message"]
    assert line("simulate", tmp_path / "plan.yaml", "--rings", "1,4", "--runs", "1")[0] == 0


@pytest.mark.mosquitto
def test_publishing_what_was_never_built_says_so(server, line):
    status, _, error = line("model", "publish", "nope@1")
    assert status == 2
    told = json.loads(error)
    assert told["error"] == "not_built"
    assert "hub model build" in told["hint"]

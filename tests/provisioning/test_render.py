"""Deployment files are what systemd and Compose can read, and nothing slips in through a value."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

from model_formats.core.telemetry_off import SWITCHES
from provisioning.deploy.render import ComposeTerms, UnitTerms, ValueUnfit, compose, units

TERMS = UnitTerms(program=Path("/opt/spokeshave/bin/spoke"), home=Path("/var/lib/spokeshave"))


def test_a_spoke_is_two_units_that_start_alone() -> None:
    found = units("spoke", TERMS)
    assert set(found) == {"spokeshave-agent.service", "spokeshave-server.service"}
    for name, text in found.items():
        service = _service(text)
        word = "agent" if "agent" in name else "serve"
        assert service["ExecStart"] == f"/opt/spokeshave/bin/spoke --home /var/lib/spokeshave {word}"
        assert service["ReadWritePaths"] == "/var/lib/spokeshave"
        assert service["Restart"] == "always"
        assert not re.search(r"Requires=|BindsTo=|PartOf=", text), "one's fall must not take the other"


def test_a_hub_is_one_unit() -> None:
    text = units("hub", UnitTerms(Path("/usr/bin/hub"), Path("/srv/hub"), user="hub"))["spokeshave-hub.service"]
    assert "ExecStart=/usr/bin/hub --home /srv/hub up\n" in text
    assert "User=hub\n" in text


def test_the_server_reaches_this_machine_alone_and_the_agent_its_hub() -> None:
    found = {
        name: _service(text) for name, text in units("spoke", UnitTerms(TERMS.program, TERMS.home, hub=("192.0.2.7",))).items()
    }
    for service, allowed in (("server", "localhost"), ("agent", "localhost 192.0.2.7")):
        unit = found[f"spokeshave-{service}.service"]
        assert (unit["IPAddressDeny"], unit["IPAddressAllow"]) == ("any", allowed)
        assert unit["RestrictAddressFamilies"] == "AF_INET AF_INET6 AF_UNIX"


def test_callers_and_resolvers_are_let_in_by_address_only() -> None:
    terms = UnitTerms(
        TERMS.program, TERMS.home, hub=("192.0.2.7",), resolvers=("10.0.0.53",), callers=("10.1.0.0/16", "fd00::/8")
    )
    found = {name: _service(text)["IPAddressAllow"] for name, text in units("spoke", terms).items()}
    assert found["spokeshave-server.service"] == "localhost 10.1.0.0/16 fd00::/8"
    assert found["spokeshave-agent.service"] == "localhost 192.0.2.7 10.0.0.53"
    with pytest.raises(ValueUnfit, match="not an address"):
        units("spoke", UnitTerms(TERMS.program, TERMS.home, hub=("hub.example",)))


@pytest.mark.parametrize("role", ["hub", "spoke"])
def test_units_and_containers_switch_telemetry_off(role: str) -> None:
    wanted = [f"{name}={value}" for name, value in SWITCHES.items()]
    for text in units(role, TERMS).values():  # type: ignore[arg-type]
        assert _service(text)["Environment"].split() == wanted
    for service in yaml.safe_load(compose(ComposeTerms("r.example/s:1", role)))["services"].values():  # type: ignore[arg-type]
        assert service["environment"] == SWITCHES


def test_the_containers_server_has_no_way_out() -> None:
    found = yaml.safe_load(compose(ComposeTerms("r.example/s:1", "spoke")))
    assert found["services"]["server"]["networks"] == ["callers"]
    assert found["networks"]["callers"] == {"internal": True}


def _service(text: str) -> configparser.SectionProxy:
    unit = configparser.ConfigParser(strict=True, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    return unit["Service"]


@pytest.mark.parametrize("role", ["hub", "spoke"])
def test_compose_is_yaml_with_closed_containers(role: str) -> None:
    services = yaml.safe_load(compose(ComposeTerms("registry.example/spokeshave:1", role)))["services"]  # type: ignore[arg-type]
    assert set(services) == ({"hub"} if role == "hub" else {"agent", "server"})
    for service in services.values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


@pytest.mark.parametrize("user", ["", "a b", "x\nExecStartPre=/bin/sh", "{{ 7 * 7 }}", "$(id)"])
def test_a_value_that_is_more_than_a_word_is_refused(user: str) -> None:
    with pytest.raises(ValueUnfit):
        units("spoke", UnitTerms(TERMS.program, TERMS.home, user=user))


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(ValueUnfit, match="absolute"):
        units("hub", UnitTerms(Path("hub"), Path("/srv/hub")))

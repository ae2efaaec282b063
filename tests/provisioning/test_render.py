"""Deployment files are what systemd and Compose can read, and nothing slips in through a value."""

import configparser
import re
from pathlib import Path

import pytest
import yaml

from provisioning.render import ComposeTerms, UnitTerms, ValueUnfit, compose, units

TERMS = UnitTerms(program=Path("/opt/spokeshave/bin/spoke"), home=Path("/var/lib/spokeshave"))


def test_a_spoke_is_two_units_that_start_alone() -> None:
    found = units("spoke", TERMS)
    assert set(found) == {"spokeshave-agent.service", "spokeshave-server.service"}
    for name, text in found.items():
        unit = configparser.ConfigParser(strict=True, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(text)
        word = "agent" if "agent" in name else "serve"
        assert unit["Service"]["ExecStart"] == f"/opt/spokeshave/bin/spoke --home /var/lib/spokeshave {word}"
        assert unit["Service"]["ReadWritePaths"] == "/var/lib/spokeshave"
        assert unit["Service"]["Restart"] == "always"
        assert not re.search(r"Requires=|BindsTo=|PartOf=", text), "one's fall must not take the other"


def test_a_hub_is_one_unit() -> None:
    text = units("hub", UnitTerms(Path("/usr/bin/hub"), Path("/srv/hub"), user="hub"))["spokeshave-hub.service"]
    assert "ExecStart=/usr/bin/hub --home /srv/hub up\n" in text
    assert "User=hub\n" in text


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

"""Deployment files: systemd units and Compose, from the templates beside this module. Needs jinja2 (extra `[hub]`), when called.

They are printed or written for an administrator, who reads and installs them; nothing is installed here.
"""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from model_formats.core.errors import OperatorError
from model_formats.core.telemetry_off import SWITCHES

__all__ = ["ComposeTerms", "UnitTerms", "ValueUnfit", "compose", "units"]

_PLAIN = re.compile(r"^[A-Za-z0-9@._:/-]+$")


class ValueUnfit(OperatorError):
    """A value that would change the meaning of the file that it is put into."""

    code = "deploy_value_unfit"
    hint = "Paths, users and image names may hold letters, digits and @ . _ : / - only."


@dataclass(frozen=True, slots=True)
class UnitTerms:
    """What systemd units need to know."""

    program: Path
    """The `hub` or `spoke` program, absolute."""
    home: Path
    user: str = "spokeshave"
    agent_memory_mb: int = 256
    hub: tuple[str, ...] = ()
    """Addresses or networks of the hub: all that the agent may reach. None leaves the agent's network open."""
    resolvers: tuple[str, ...] = ()
    """Addresses of name servers that the agent may ask, where they are not on this machine."""
    callers: tuple[str, ...] = ()
    """Networks whose programs may call the server, besides this machine's own."""


@dataclass(frozen=True, slots=True)
class ComposeTerms:
    """What a Compose file needs to know."""

    image: str
    role: Literal["hub", "spoke"]
    https_port: int = 8443
    mqtt_port: int = 8883


def units(role: Literal["hub", "spoke"], terms: UnitTerms) -> dict[str, str]:
    """File name -> systemd unit. A spoke is two units, so that one's fall does not take the other. Raises ValueUnfit."""
    names = ["spokeshave-hub.service"] if role == "hub" else ["spokeshave-agent.service", "spokeshave-server.service"]
    for path in (terms.program, terms.home):
        if not path.is_absolute():
            raise ValueUnfit(f"{path} is not an absolute path")
    for network in (*terms.hub, *terms.resolvers, *terms.callers):
        _check_network(network)
    return {name: _render(f"{name}.j2", {**asdict(terms), "quiet": SWITCHES}) for name in names}


def compose(terms: ComposeTerms) -> str:
    """A Compose file. Raises ValueUnfit."""
    return _render("compose.yaml.j2", {**asdict(terms), "quiet": SWITCHES})


def _check_network(text: str) -> None:
    try:
        ipaddress.ip_network(text, strict=False)
    except ValueError as e:
        raise ValueUnfit(f"{text!r} is not an address or a network", hint="Write it as 192.0.2.7 or 192.0.2.0/24.") from e


def _render(name: str, values: Mapping[str, object]) -> str:
    import jinja2  # here, since a spoke does without it

    for key, value in values.items():
        if isinstance(value, str | Path | int) and not _PLAIN.match(str(value)):
            raise ValueUnfit(f"{key} is {str(value)!r}")
    loader = jinja2.PackageLoader("provisioning.deploy", "templates")
    environment = jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=True)
    return environment.get_template(name).render(values)

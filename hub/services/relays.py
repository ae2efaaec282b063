"""Relays of this hub: which sites each one serves. The broker's access list follows."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sqlalchemy import Connection

from hub.context import HubContext
from hub.rules.audit_action import AuditAction
from hub.services.directives import SpokeUnknown
from hub.store.audit import append_audit
from hub.store.key_values import get_value, set_value
from hub.store.spokes import enrolled_zones
from model_formats.core.errors import OperatorError
from provisioning.brokers.region import RelayConfig, write_region
from sync.core.types import SpokeId

__all__ = ["RelayInvalid", "allowed_relays", "make_relay"]

_FACT = "relays"


class RelayInvalid(OperatorError):
    """A relay that cannot be made as asked."""

    code = "relay_invalid"
    hint = "Give it a short name (a-z, 0-9, -) and sites that have enrolled spokes."


def make_relay(hub: HubContext, relay: RelayConfig, sites: Sequence[str], out: Path, *, who: str) -> list[Path]:
    """Render the folder of a relay, and let it through the hub's broker. Raises RelayInvalid, SpokeUnknown.

    The relay may do what its sites' spokes may. Doing it again for a name replaces its sites, keys and certificates.
    """
    name = relay.name
    if not re.fullmatch("[a-z0-9][a-z0-9-]{0,30}", name):
        raise RelayInvalid(f"{name!r} is not a name for a relay")
    if not sites:
        raise RelayInvalid(f"relay {name} serves no site")
    with hub.database.begin() as db:
        served = _of_sites(enrolled_zones(db), sites)
        if missing := sorted(set(sites) - {spoke.site for spoke, _ in served}):
            raise SpokeUnknown(f"no spoke is enrolled at {missing[0]}")
        files = write_region(out, relay, hub.ca, served, now=hub.clock.now())
        set_value(db, _FACT, json.dumps({**_relays(db), name: sorted(set(sites))}))
        append_audit(db, who, AuditAction.RELAY_MAKE, name, now=hub.now, details={"sites": ", ".join(sorted(set(sites)))})
    return files


def allowed_relays(hub: HubContext) -> Mapping[str, tuple[tuple[SpokeId, str], ...]]:
    """Every relay and the spokes (with zones) it speaks for."""
    with hub.database.read() as db:
        enrolled = enrolled_zones(db)
        return {name: tuple(_of_sites(enrolled, sites)) for name, sites in _relays(db).items()}


def _relays(db: Connection) -> dict[str, list[str]]:
    found: dict[str, list[str]] = json.loads(get_value(db, _FACT) or "{}")
    return found


def _of_sites(enrolled: Sequence[tuple[SpokeId, str]], sites: Sequence[str]) -> list[tuple[SpokeId, str]]:
    return [(spoke, zone) for spoke, zone in enrolled if spoke.site in sites]

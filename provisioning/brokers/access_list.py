"""The broker's access list, generated from the topic grammar."""

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

from provisioning.brokers.relay import relay_rights, relay_user
from sync.core.types import SpokeId
from sync.protocol.topics import Right, hub_rights, spoke_rights

__all__ = ["HUB_USERS", "NO_RELAYS", "render_acl"]

HUB_USERS = ("hub", "hub-1", "hub-2", "hub-3")
"""Certificate names of the hub's own connections, one each. A spoke's name has a dot in it, so they cannot meet."""


NO_RELAYS: Mapping[str, Iterable[tuple[SpokeId, str]]] = MappingProxyType({})


def render_acl(
    spokes: Iterable[tuple[SpokeId, str]],
    *,
    hub_users: Sequence[str] = HUB_USERS,
    relays: Mapping[str, Iterable[tuple[SpokeId, str]]] = NO_RELAYS,
) -> str:
    """Mosquitto's `acl_file` for these spokes (with their zones) and relays (name -> spokes). Nobody else may do anything."""
    parts = [_section(user, hub_rights()) for user in hub_users]
    parts += [_section(relay_user(name), relay_rights(served)) for name, served in sorted(relays.items())]
    parts += [_section(spoke.username, spoke_rights(spoke, zone)) for spoke, zone in sorted(spokes)]
    return "\n".join(parts)


def _section(user: str, rights: Iterable[Right]) -> str:
    lines = [f"user {user}", *(f"topic {right.access} {right.pattern}" for right in rights)]
    return "\n".join(lines) + "\n"

"""A relay: a Mosquitto in a region, bridged to the hub's, so that one copy over the long link serves the region's spokes.

A relay decides nothing and nobody trusts it: topics are content-addressed, and the spoke verifies everything. It
keeps the zone's TUF metadata and its spokes' directives, so that they can be read while the long link is down. It has a
certificate of the device CA for each side: `serverAuth` for its spokes, `clientAuth` as `relay-<name>` for the hub's broker.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from sync.core.tls import TlsFiles
from sync.core.types import SpokeId
from sync.protocol.topics import Right, spoke_rights

__all__ = ["Bridge", "relay_rights", "relay_user"]


def relay_user(name: str) -> str:
    """A relay's name in its certificate and the hub's access list. It has no dot, so it is no spoke's, and is not the hub's."""
    return f"relay-{name}"


def relay_rights(spokes: Iterable[tuple[SpokeId, str]]) -> tuple[Right, ...]:
    """What a relay may do at the hub's broker: what its spokes may, together, and no more."""
    return tuple(dict.fromkeys(right for spoke, zone in sorted(spokes) for right in spoke_rights(spoke, zone)))


@dataclass(frozen=True, slots=True)
class Bridge:
    """The relay's side of the long link, as Mosquitto's configuration."""

    name: str
    hub_host: str
    hub_port: int
    tls: TlsFiles
    spokes: tuple[tuple[SpokeId, str], ...]

    def lines(self) -> list[str]:
        """The `connection` section: what spokes read comes in, what they write goes out; all but blocks as QoS 1."""
        return [
            f"connection {relay_user(self.name)}",
            f"address {self.hub_host}:{self.hub_port}",
            f"bridge_cafile {self.tls.ca}",
            f"bridge_certfile {self.tls.certificate}",
            f"bridge_keyfile {self.tls.key}",
            "bridge_protocol_version mqttv50",
            f"remote_clientid {relay_user(self.name)}",
            f"local_clientid local.{relay_user(self.name)}",
            "cleansession false",
            "notifications false",
            "restart_timeout 2 60",
            "keepalive_interval 30",
            *(_topic(right) for right in relay_rights(self.spokes)),
        ]


def _topic(right: Right) -> str:
    qos = 0 if "/blob/" in right.pattern else 1
    return f"topic {right.pattern} {'in' if right.access == 'read' else 'out'} {qos}"

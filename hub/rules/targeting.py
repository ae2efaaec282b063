"""Which spokes a ring means, and which of them the package may not go to. Residency fails closed: no label, no delivery."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hub.rules.rollout_plan import Ring
from sync.core.types import Reason, Regime, SpokeId

__all__ = ["Forbidden", "TargetSpoke", "Targets", "may_have", "resolve"]


@dataclass(frozen=True, slots=True)
class TargetSpoke:
    """A spoke as targeting sees it."""

    spoke: SpokeId
    zone: str
    regime: Regime


@dataclass(frozen=True, slots=True)
class Forbidden:
    """A spoke that a ring names, and why it may not have the package."""

    spoke: SpokeId
    reason: Reason


@dataclass(frozen=True, slots=True)
class Targets:
    """Members of each ring in order; those that residency forbids; sites that nobody knows."""

    rings: tuple[tuple[SpokeId, ...], ...]
    forbidden: tuple[Forbidden, ...] = ()
    unknown: tuple[str, ...] = ()


def resolve(
    rings: Iterable[Ring], fleet: Iterable[TargetSpoke], zones: Iterable[str], regimes: Iterable[str] | None = None
) -> Targets:
    """Match rings with the fleet. A spoke belongs to the first ring that names it; `*` takes the rest that may have the package.

    `regimes` None: the labels do not restrict regimes.
    """
    rings, members = tuple(rings), sorted(fleet, key=lambda m: m.spoke)
    may_zones, may_regimes = set(zones), None if regimes is None else set(regimes)
    taken: set[SpokeId] = set()
    forbidden: dict[SpokeId, Forbidden] = {}
    found: list[list[SpokeId]] = [[] for _ in rings]
    for everyone in (False, True):  # `*` comes last, whatever its place
        for number, ring in enumerate(rings):
            for member in members:
                if member.spoke in taken or not _selects(ring, member, everyone=everyone):
                    continue
                reason = may_have(member, may_zones, may_regimes)
                if reason is None:
                    taken.add(member.spoke)
                    found[number].append(member.spoke)
                elif not everyone:
                    forbidden[member.spoke] = Forbidden(member.spoke, reason)
    named = {site for ring in rings for site in ring.sites if site != "*"}
    known = {str(m.spoke) for m in members} | {m.spoke.site for m in members}
    return Targets(tuple(tuple(r) for r in found), tuple(forbidden.values()), tuple(sorted(named - known)))


def _selects(ring: Ring, member: TargetSpoke, *, everyone: bool) -> bool:
    names = {"*"} if everyone else {member.spoke.site, str(member.spoke)}
    return (
        bool(names & set(ring.sites))
        and (not ring.zones or member.zone in ring.zones)
        and (not ring.regimes or member.regime in ring.regimes)
    )


def may_have(member: TargetSpoke, zones: Collection[str], regimes: Collection[str] | None) -> Reason | None:
    """None when the package may go to this spoke, else why not. No label, no delivery."""
    if member.zone not in zones:
        return Reason.ZONE_FORBIDDEN
    if regimes is not None and member.regime not in regimes:
        return Reason.REGIME_FORBIDDEN
    return None

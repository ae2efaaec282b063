"""Reference profiles of released packages by index digest, against which outbox records are checked and read."""

from functools import lru_cache

from hub.context import HubContext
from hub.registry.store import RegistryStore
from hub.rules.egress_residency import KnownPackage
from model_formats.core.errors import SpokeshaveError
from model_formats.package.read import open_package
from model_formats.statistics.reference_profile import ReferenceProfile

__all__ = ["known_package", "profile_of"]


def known_package(hub: HubContext, index: str) -> KnownPackage | None:
    """The package of an index digest with its profile; None when the hub does not have it, or it has no profile."""
    return _read(hub.registry, index) if hub.registry.has(index) else None


def profile_of(hub: HubContext, index: str) -> ReferenceProfile | None:
    """Its profile alone."""
    known = known_package(hub, index)
    return known.profile if known else None


@lru_cache(maxsize=256)
def _read(registry: RegistryStore, index: str) -> KnownPackage | None:
    """A digest names one content for ever, so the answer may be kept."""
    try:
        package = open_package(registry, index)
        return KnownPackage(package.spec.model, package.spec.version, package.profile)
    except SpokeshaveError:  # not a package, or without a profile: nothing that a record could rightly speak of
        return None

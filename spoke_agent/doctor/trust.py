"""Release metadata that is missing, expired or stale."""

from provisioning.identity.identity import Identity
from spoke_agent.doctor.finding import Finding
from spoke_agent.site.home import SpokeHome
from sync.core.clock import SystemClock
from sync.trust.client import TrustStore


def check(home: SpokeHome) -> Finding | None:
    """Raises MetadataIncomplete before the first metadata has arrived."""
    identity = Identity.load(home.root)
    released = TrustStore(home.trust, SystemClock(), identity.tuf_root, site=identity.spoke.site).released()
    if released.expired:
        issue = f"{', '.join(released.expired)} metadata has expired: nothing new is taken"
    elif released.stale:
        issue = f"the hub has not been heard for {released.staleness}"
    else:
        return None
    return Finding("trust", issue, "Connect the spoke, or bring a fresh bundle. What is served stays served.")

"""Release metadata that is missing, expired or stale."""

from model_formats.core.check_result import CheckResult
from provisioning.identity.identity import Identity
from spoke_agent.site.home import SpokeHome
from sync.core.clock import SystemClock
from sync.trust.client import TrustStore


def check(home: SpokeHome) -> CheckResult | None:
    """Raises MetadataIncomplete before the first metadata has arrived."""
    identity = Identity.load(home.root)
    released = TrustStore(home.trust, SystemClock(), identity.tuf_root, site=identity.spoke.site).released()
    if released.expired:
        issue = f"{', '.join(released.expired)} metadata has expired: nothing new is taken"
    elif released.stale:
        issue = f"the hub has not been heard for {released.staleness}"
    else:
        return None
    return CheckResult.failed("trust", issue, "Connect the spoke, or bring a fresh bundle. What is served stays served.")

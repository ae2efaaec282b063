"""A wall clock that cannot be right: it is behind what signed metadata has proved."""

from datetime import UTC, datetime, timedelta

from model_formats.core.check_result import CheckResult
from provisioning.identity.identity import Identity
from spoke_agent.site.home import SpokeHome
from sync.core.clock import SystemClock
from sync.trust.client import TrustStore

SLACK = timedelta(minutes=5)


def check(home: SpokeHome) -> CheckResult | None:
    """Trusted time never runs backwards; a wall clock far behind it is wrong."""
    identity = Identity.load(home.root)
    trusted = TrustStore(home.trust, SystemClock(), identity.tuf_root, site=identity.spoke.site).now()
    behind = trusted - datetime.now(UTC)
    if behind <= SLACK:
        return None
    return CheckResult.failed(
        "clock",
        f"the wall clock is at least {str(behind).partition('.')[0]} behind",
        "Set the clock (NTP). Trust goes on with its own time.",
    )

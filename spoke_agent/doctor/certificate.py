"""A certificate that ends soon: renewal is not working."""

from datetime import UTC, datetime, timedelta

from model_formats.core.check_result import CheckResult
from provisioning.identity.identity import Identity
from spoke_agent.site.home import SpokeHome

WARN = timedelta(days=7)


def check(home: SpokeHome) -> CheckResult | None:
    """The agent renews at two thirds of the life; a week before the end something is wrong."""
    left = Identity.load(home.root).expires() - datetime.now(UTC)
    if left > WARN:
        return None
    issue = "the device certificate has expired" if left <= timedelta(0) else f"the device certificate ends in {left.days} days"
    return CheckResult.failed(
        "certificate", issue, "Start the agent where it reaches the hub, or enrol again (`hub spoke invite`)."
    )

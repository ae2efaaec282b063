"""Not enrolled, or keys that others may read."""

from model_formats.core.check_result import CheckResult
from provisioning.identity.identity import Identity
from spoke_agent.site.home import SpokeHome


def check(home: SpokeHome) -> CheckResult | None:
    """Raises NotEnrolled."""
    Identity.load(home.root)
    for name in ("device.key", "site.key"):
        path = home.identity / name
        if path.exists() and path.stat().st_mode & 0o077:
            return CheckResult.failed("identity", f"{path} may be read by others", f"chmod 600 {path}")
    return None

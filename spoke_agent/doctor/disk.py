"""Too little room for the next version."""

import shutil

from model_formats.core.check_result import CheckResult
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.settings import load_settings

_MIB = 1 << 20


def check(home: SpokeHome) -> CheckResult | None:
    """Free space against the reserve."""
    free, reserve = shutil.disk_usage(home.root).free // _MIB, load_settings(home).disk_reserve_mb
    if free > 2 * reserve:
        return None
    issue = f"{free} MiB free, {reserve} MiB are kept in reserve"
    return CheckResult.failed("disk", issue, "Free some space; what is served stays served, but new versions will be rejected.")

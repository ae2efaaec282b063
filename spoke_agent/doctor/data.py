"""Local rows that cannot be read: a lost site key, a token that is not there, a PIN it refuses."""

from model_formats.core.check_result import CheckResult
from spoke_agent.site.home import SpokeHome


def check(home: SpokeHome) -> CheckResult | None:
    """Raises DataKeyLost, SiteKeyUnavailable, SiteKeyInvalid. Before the first row there is nothing to find."""
    if home.data.exists():
        from spoke_agent.data.store import open_data

        open_data(home.root).close()
    return None

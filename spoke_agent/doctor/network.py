"""A process that tried to call somebody who is not the hub."""

from datetime import UTC, datetime

from model_formats.core.check_result import CheckResult
from spoke_agent.site.home import SpokeHome
from spoke_agent.site.network_watch import strangers

_SHOWN = 3


def check(home: SpokeHome) -> CheckResult | None:
    """Read what agent and server wrote down of each other's calls."""
    found = strangers(home)
    if not found:
        return None
    newest = [f"{s.process}: {s.where} ({s.times} times, last {_day(s.last)})" for s in found[: -_SHOWN - 1 : -1]]
    more = f", and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return CheckResult.failed(
        "network",
        f"calls to others than the hub: {'; '.join(newest)}{more}",
        "Find out which library does it (what was upgraded last? `pip list`), go back to the versions of constraints.txt; the "
        "systemd units forbid such calls. List whom you allow under may_call in spoke.toml. Then remove run/strangers-*.json.",
    )


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")

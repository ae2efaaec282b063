"""A journal that cannot be read, or reports that nobody takes."""

from model_formats.core.check_result import CheckResult
from spoke_agent.site.home import SpokeHome
from spoke_agent.update.journal import Journal, UnreadableRow

MANY = 500


def check(home: SpokeHome) -> CheckResult | None:
    """Raises JournalDamaged."""
    journal = Journal(home.journal)
    try:
        bad = [u.message for u in journal.updates().values() if isinstance(u, UnreadableRow)]
        waiting = len(journal.unacknowledged())
    finally:
        journal.close()
    if bad:
        return CheckResult.failed("journal", bad[0], "Restart the agent: it goes to last-good and begins the update anew.")
    if waiting > MANY:
        return CheckResult.failed(
            "journal", f"{waiting} reports wait for the hub", "Connect the spoke, or carry `spoke sideload receipts`."
        )
    return None

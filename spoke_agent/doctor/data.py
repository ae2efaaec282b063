"""Local rows that cannot be read, because their key is lost or another one."""

from spoke_agent.doctor.finding import Finding
from spoke_agent.home import SpokeHome


def check(home: SpokeHome) -> Finding | None:
    """Raises DataKeyLost."""
    if home.data.exists():
        from spoke_agent.data.store import open_data

        open_data(home.root).close()
    return None

"""Agent or server that does not run."""

from model_formats.core.check_result import CheckResult
from spoke_agent.daemon.status import agent_runs
from spoke_agent.server_api.client import ControlClient
from spoke_agent.site.home import SpokeHome


def check(home: SpokeHome) -> CheckResult | None:
    """Ask the server at its control socket, and try the agent's lock."""
    client = ControlClient(home.control_socket, timeout_s=5)
    server, agent = client.alive(), agent_runs(home)
    client.close()
    if server and agent:
        return None
    down = " and ".join(name for name, up in (("server", server), ("agent", agent)) if not up)
    return CheckResult.failed(
        "processes", f"{down} not running", "Start both with `spoke run` (or `spoke agent` and `spoke serve`)."
    )

"""An agent that runs and does not reach its hub."""

from model_formats.core.check_result import CheckResult
from provisioning.identity.identity import Identity
from spoke_agent.daemon.status import ask_agent
from spoke_agent.site.home import SpokeHome


def check(home: SpokeHome) -> CheckResult | None:
    """Ask the agent. One that was told to do without a network, or does not run, lacks no connection."""
    told = ask_agent(home)
    if told.get("connected", True) or told.get("offline", True):  # an agent from before an upgrade does not say
        return None
    identity = Identity.load(home.root)
    return CheckResult.failed(
        "link",
        f"no connection to the hub's broker at {identity.broker_host}:{identity.broker_port}",
        "Look at the network here, the clock, and whether `hub up` runs there. What is served goes on; it tries again by itself.",
    )

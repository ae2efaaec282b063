"""A policy of the site that cannot be read: nothing leaves."""

from provisioning.identity import Identity
from spoke_agent.doctor.finding import Finding
from spoke_agent.home import SpokeHome
from spoke_agent.outbox.policy import load_policy


def check(home: SpokeHome) -> Finding | None:
    """Read `egress.yaml` as the outbox would. Raises EgressPolicyInvalid, whose words are the finding."""
    identity = Identity.load(home.root)
    load_policy(home.root, identity.spoke.site, identity.regime)
    return None

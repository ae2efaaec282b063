"""A policy of the site that cannot be read: nothing leaves."""

from provisioning.identity.identity import Identity
from spoke_agent.doctor.finding import Finding
from spoke_agent.outbox.policy import load_policy
from spoke_agent.site.home import SpokeHome


def check(home: SpokeHome) -> Finding | None:
    """Read `egress.yaml` as the outbox would. Raises EgressPolicyInvalid, whose words are the finding."""
    identity = Identity.load(home.root)
    load_policy(home.root, identity.spoke.site, identity.regime)
    return None

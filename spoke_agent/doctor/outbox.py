"""A policy that cannot be read: then nothing leaves, not even a verdict."""

from provisioning.identity import Identity
from spoke_agent.doctor.finding import Finding
from spoke_agent.home import SpokeHome


def check(home: SpokeHome) -> Finding | None:
    """Raises PolicyInvalid."""
    from spoke_agent.outbox.policy import load_policy

    identity = Identity.load(home.root)
    load_policy(home.root, identity.spoke.site, identity.regime)
    return None

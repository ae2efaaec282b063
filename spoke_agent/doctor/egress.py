"""A policy of the site that cannot be read: nothing leaves."""

from model_formats.core.check_result import CheckResult
from provisioning.identity.identity import Identity
from spoke_agent.outbox.policy import load_policy
from spoke_agent.site.home import SpokeHome


def check(home: SpokeHome) -> CheckResult | None:
    """Read `egress.yaml` as the outbox would. Raises EgressPolicyInvalid, whose words are the finding."""
    identity = Identity.load(home.root)
    load_policy(home.root, identity.spoke.site, identity.regime)
    return None

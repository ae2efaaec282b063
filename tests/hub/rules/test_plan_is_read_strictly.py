import pytest

from hub.rules.rollout_plan import PlanInvalid, RolloutPlan

GOOD = """
apiVersion: spokeshave/v1
kind: Rollout
metadata: {name: digits-1}
spec:
  model: digits@1
  rings:
    - {name: canary, sites: [frankfurt]}
    - {name: rest, sites: ["*"]}
  gate: {min_committed: 1, soak_s: 2}
  shadow: {min_rows: 20}
"""


def test_a_whole_document_survives_a_round_trip():
    plan = RolloutPlan.parse(GOOD)
    assert plan.spec.ref.version == 1
    assert plan.spec.shadow.min_rows == 20
    assert RolloutPlan.parse(plan.canonical()) == plan


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (("min_committed: 1", "min_comitted: 1"), "spec.gate.min_comitted"),
        (("digits@1", "digits"), "spec.model"),
        (("min_committed: 1", "min_committed: one"), "spec.gate.min_committed"),
        (("kind: Rollout", "kind: Deployment"), "kind"),
        (("name: rest", "name: canary"), "same name"),
        (('["*"]', "[frankfurt]"), "frankfurt is in two places"),
        (('["*"]', "[]"), "spec.rings.1.sites"),
        (("soak_s: 2", "min_committed: 3"), "a key occurs twice"),
        (("[frankfurt]", "[Frank_furt]"), "spec.rings.0.sites.0"),
        (("kind: Rollout", "kind: [Rollout"), "not YAML"),
        (("[frankfurt]", "[2026-01-01]"), "spec.rings.0.sites.0"),
        (("sites: [frankfurt]", "sites: &a [*a]"), "aliases"),
    ],
)
def test_what_is_wrong_is_named(change, named):
    with pytest.raises(PlanInvalid, match=None) as caught:
        RolloutPlan.parse(GOOD.replace(*change))
    assert named in str(caught.value)

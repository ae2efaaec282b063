from pathlib import Path

import pytest

from spoke_agent.outbox.errors import PolicyInvalid
from spoke_agent.outbox.policy import (
    Allow,
    Day,
    EgressRequest,
    EgressRule,
    SitePolicy,
    decide,
    default_policy,
    load_policy,
    may_tell_counts,
    turn_switch,
)
from sync.protocol.messages import EgressCeiling

OPEN = SitePolicy(
    site="dubai",
    regime="ae-pdpl",
    epsilon_per_day=1.0,
    epsilon_per_30_days=2.0,
    max_bytes_per_day=10_000,
    allow=tuple(Allow(kind=k) for k in ("ops", "drift_verdict", "drift_hist", "perf_estimate")),
)
HIST = EgressRequest("drift_hist", rows=3000, bytes=1000)


@pytest.mark.parametrize(
    ("policy", "ceiling", "regime", "asked", "day", "why"),
    [
        (OPEN, EgressCeiling(), "ae-pdpl", HIST, Day(), EgressRule.ALLOWED),
        (OPEN.replace(sovereignty="sealed"), EgressCeiling(), "ae-pdpl", HIST, Day(), EgressRule.SEALED),
        (OPEN.replace(sovereignty="verdict_only"), EgressCeiling(), "ae-pdpl", HIST, Day(), EgressRule.VERDICT_ONLY),
        (OPEN, EgressCeiling(), "ae-health", HIST, Day(), EgressRule.BELOW_REGIME_FLOOR),
        (OPEN.replace(allow=()), EgressCeiling(), "ae-pdpl", HIST, Day(), EgressRule.NOT_IN_SITE_POLICY),
        (OPEN, EgressCeiling(kinds=("ops",)), "ae-pdpl", HIST, Day(), EgressRule.NOT_IN_HUB_CEILING),
        (OPEN, EgressCeiling(), "ae-pdpl", EgressRequest("drift_hist", 1999, 100), Day(), EgressRule.TOO_FEW_ROWS),
        (OPEN, EgressCeiling(), "ae-pdpl", EgressRequest("drift_verdict", 199, 100), Day(), EgressRule.TOO_FEW_ROWS),
        (OPEN, EgressCeiling(), "ae-pdpl", EgressRequest("drift_hist", 2000, 10**6), Day(), EgressRule.TOO_LARGE),
        (OPEN, EgressCeiling(), "ae-pdpl", HIST, Day(bytes=9500), EgressRule.DAY_FULL),
        (OPEN, EgressCeiling(max_bytes_per_day=500), "ae-pdpl", HIST, Day(), EgressRule.DAY_FULL),
        (
            OPEN,
            EgressCeiling(),
            "ae-pdpl",
            EgressRequest("drift_hist", 3000, 10, epsilon=0.6),
            Day(epsilon=0.5),
            EgressRule.LEDGER_EXHAUSTED,
        ),
        (
            OPEN,
            EgressCeiling(),
            "ae-pdpl",
            EgressRequest("drift_hist", 3000, 10, epsilon=0.6),
            Day(epsilon_30_days=1.5),
            EgressRule.LEDGER_EXHAUSTED,
        ),
    ],
)
def test_the_first_rule_that_says_no_decides(
    policy: SitePolicy, ceiling: EgressCeiling, regime: str, asked: EgressRequest, day: Day, why: EgressRule
):
    assert decide(policy, ceiling, regime, asked, day) is why  # type: ignore[arg-type]


def test_an_interval_holds_except_for_a_changed_level():
    policy = OPEN.replace(allow=(Allow(kind="drift_verdict", interval_min_s=900),))
    asked, day = EgressRequest("drift_verdict", 300, 100), Day(since_last_s=100)
    assert decide(policy, EgressCeiling(), "ae-pdpl", asked, day) is EgressRule.TOO_SOON
    assert (
        decide(policy, EgressCeiling(), "ae-pdpl", EgressRequest("drift_verdict", 300, 100, urgent=True), day)
        is EgressRule.ALLOWED
    )


def test_the_hub_cannot_widen_what_the_site_allows():
    generous = EgressCeiling(kinds=("ops", "drift_verdict", "drift_hist", "masked_sum"), max_bytes_per_day=10**9)
    assert decide(default_policy("dubai", "none"), generous, "none", HIST, Day()) is EgressRule.NOT_IN_SITE_POLICY
    assert decide(OPEN, generous, "ae-pdpl", HIST, Day(bytes=9999)) is EgressRule.DAY_FULL


def test_no_file_is_the_default_of_verdicts_and_operations(tmp_path: Path):
    found = load_policy(tmp_path, "dubai", "gdpr")
    assert {a.kind for a in found.allow} == {"ops", "drift_verdict"}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("allow: [{kind: raw_rows}]", "kind"),
        ("allow: [{kind: ops}, {kind: ops}]", "allowed twice"),
        ("allow: [{kind: masked_sum}]", "needs a consent"),
        ("allow: [{kind: masked_key}]", "goes with masked_sum"),
        ("allow: [{kind: ops, consent: x}]", "belong to masked_sum"),
        ("allow: [{kind: masked_sum, consent: x, peers: []}]", "peers"),
        ("allow: [{kind: drift_hist, features: []}]", "features is empty"),
        ("allow: [{kind: drift_verdict, features: [age]}]", "no effect on drift_verdict"),
        ("allow: [{kind: rff_mean, features: [age]}]", "no effect on rff_mean"),
        ("allow: [{kind: drift_hist, protect: [dp, round]}]", "dp alone"),
        ("allow: [{kind: drift_hist, protect: []}]", "dp alone"),
        ("sovereignty: sealed\nallow: []\nsovereignty: normal", "sovereignty stands there twice"),
        ("allow: [{kind: ops, kind: drift_hist}]", "kind stands there twice"),
        ("allow: [{kind: ops, interval_min_s: -1}]", "interval_min_s"),
        ("epsilon_per_day: .nan", "epsilon_per_day"),
        ("epsilon_per_day: .inf", "epsilon_per_day"),
        ("regime: ae-health\nallow: [{kind: drift_hist}]", "never lets drift_hist out"),
        ("min_cell: 3", "min_cell"),
        ("epsilon_per_day: 5\nepsilon_per_30_days: 2", "epsilon_per_day is more"),
        ("site: frankfurt", "speaks of frankfurt"),
        ("surprise: 1", "surprise"),
        ("[1, 2", "not a policy"),
        ("- a\n- b", "not a policy"),
        ("!!python/object/apply:os.system ['true']", "not a policy"),
    ],
)
def test_a_policy_that_is_wrong_is_refused_by_name(tmp_path: Path, text: str, told: str):
    (tmp_path / "egress.yaml").write_text(text)
    with pytest.raises(PolicyInvalid, match=told):
        load_policy(tmp_path, "dubai", "ae-pdpl")


def test_the_switch_is_written_into_the_sites_own_file(tmp_path: Path):
    (tmp_path / "egress.yaml").write_text("allow: [{kind: drift_hist, features: [age]}]\n")
    turn_switch(tmp_path, "dubai", "ae-pdpl", "sealed")
    found = load_policy(tmp_path, "dubai", "ae-pdpl")
    assert found.sovereignty == "sealed"
    assert found.allow[0].features == ("age",)
    assert turn_switch(tmp_path, "dubai", "ae-pdpl", "normal").sovereignty == "normal"


@pytest.mark.parametrize(
    ("regime", "sovereignty", "tells"),
    [("gdpr", "normal", True), ("gdpr", "verdict_only", False), ("gdpr", "sealed", False), ("ae-health", "normal", False)],
)
def test_reports_tell_counts_of_rows_only_where_an_estimate_could_leave(regime: str, sovereignty: str, tells: bool):
    policy = default_policy("clinic", regime).replace(sovereignty=sovereignty)  # type: ignore[arg-type]
    assert may_tell_counts(policy, regime) is tells  # type: ignore[arg-type]

import pytest

from hub.rules.gates import AccuracyBelowClaim, Gate, GateFinding, MinCommitted, Tally, WilsonLower

YES, NO = Gate(lambda _: GateFinding(True, "yes")), Gate(lambda _: GateFinding(False, "no"))


def test_and_keeps_the_first_reason_against_or_the_first_reason_for():
    assert (YES & NO)(Tally()).why == "no"
    assert (NO | YES)(Tally()).why == "yes"
    assert (YES & YES)(Tally()).holds
    assert not (NO | NO)(Tally()).holds


def test_nothing_seen_never_advances():
    assert not (MinCommitted(1) & WilsonLower(0.01))(Tally(members=5)).holds


@pytest.mark.parametrize(("correct", "n", "claim", "condemned"), [
    (18, 24, 0.94, False), (28, 40, 0.94, True), (96, 120, 0.94, True), (110, 120, 0.94, False), (1, 2, 0.94, False),
    (5, 5, 1.0, False), (4, 5, 1.0, True),
])  # fmt: skip
def test_evidence_grows_with_rows_and_with_the_gap(correct, n, claim, condemned):
    seen = Tally(labelled=n, labelled_correct=correct, claim=claim, expected=claim)
    assert AccuracyBelowClaim(slack=0.0)(seen).holds is condemned


def test_very_many_good_rows_do_not_stop_the_rule():
    seen = Tally(labelled=40_000, labelled_correct=38_800, claim=0.94, expected=0.94)
    assert not AccuracyBelowClaim(slack=0.02)(seen).holds

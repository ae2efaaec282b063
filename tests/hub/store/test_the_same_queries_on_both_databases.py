"""Every query runs on SQLite and on a real PostgreSQL."""

import threading
from datetime import UTC, datetime

import pytest

from hub.rules.access import Role
from hub.rules.audit_action import AuditAction
from hub.rules.rollout import RingState, RolloutState
from hub.rules.rollout_plan import RolloutPlan
from hub.store.audit import append_audit, read_audit, verify_audit
from hub.store.directives import (
    Assignment,
    SealedDirective,
    assign,
    assignments_of,
    due_directives,
    find_assignment,
    find_directive,
    put_directive,
    rollout_assignments,
    unassign,
)
from hub.store.key_values import get_value, set_value
from hub.store.leases import release_leases, take_lease
from hub.store.reports import add_report, kept_envelope, latest_about, list_reports, received_after
from hub.store.rollouts import (
    add_approval,
    add_rollout,
    approvers_of,
    find_rollout,
    list_rollouts,
    open_rollouts,
    set_ring,
    set_rollout,
)
from hub.store.spokes import add_spoke, find_spoke, list_spokes, revoke_spoke, saw_report, saw_status
from hub.store.tables import audit
from hub.store.tokens import find_token, list_tokens, make_token, revoke_token
from hub.store.versions import VersionRecord, add_delta, add_version, deltas_to, find_version, list_versions
from model_formats.core.types import ModelRef, digest_of
from sync.core.types import Reason, SpokeId, State
from sync.protocol.messages import DeltaOffer, DesiredModel, Report, Serving, UpdateEvidence

DUBAI = SpokeId("dubai")
ONE = ModelRef("digits", 1)
INDEX, FILE = digest_of(b"index"), digest_of(b"file")
SERVING = (Serving(model="digits", version=1, index=INDEX, file=FILE, variant="onnx-int8", engine="onnxruntime"),)


def report(sequence=1, state=State.COMMITTED, **more):
    return Report(
        site="dubai", spoke="main", sequence=sequence, nonce=f"{sequence:032x}", time=datetime(2026, 1, 1, tzinfo=UTC),
        generation=3, model="digits", version=1, index=INDEX, previous=State.PROBATION, state=state, reason=Reason.NONE,
        serving=SERVING, evidence=UpdateEvidence(labelled=7), **more,
    )  # fmt: skip


def test_facts_are_replaced(database):
    with database.begin() as db:
        assert get_value(db, "https_port") is None
        set_value(db, "https_port", "1")
        set_value(db, "https_port", "2")
        assert get_value(db, "https_port") == "2"


def test_a_lease_is_held_by_one_owner_until_it_runs_out(database):
    with database.begin() as db:
        assert take_lease(db, "rollouts", "one", now=100, life_s=30)
        assert take_lease(db, "rollouts", "one", now=110, life_s=30)
        assert not take_lease(db, "rollouts", "two", now=120, life_s=30)
        assert take_lease(db, "rollouts", "two", now=141, life_s=30)
        release_leases(db, "two")
        assert take_lease(db, "rollouts", "one", now=142, life_s=30)


def test_a_token_is_found_until_it_expires_or_is_revoked(database):
    with database.begin() as db:
        number, token = make_token(db, "ann", frozenset({Role.OPERATOR, Role.VIEWER}), now=100, life_s=50)
        assert find_token(db, token, now=120).roles == {Role.OPERATOR, Role.VIEWER}
        assert find_token(db, token, now=150) is None
        assert find_token(db, token + "x", now=120) is None
        assert token not in str(list_tokens(db))
        assert revoke_token(db, number, now=121)
        assert not revoke_token(db, number, now=122)
        assert find_token(db, token, now=123) is None


def test_a_spoke_is_enrolled_heard_of_and_revoked(database):
    with database.begin() as db:
        add_spoke(db, DUBAI, zone="me", regime="ae-pdpl", certificate="PEM", serial="1", now=1.5)
        saw_status(db, DUBAI, online=True, now=10.0)
        saw_report(db, DUBAI, 4, SERVING, now=11.0)
        found = find_spoke(db, DUBAI)
        assert (found.serving, found.last_sequence, found.online) == (SERVING, 4, True)
        assert found.heard_since(11)
        assert not found.heard_since(12)
        revoke_spoke(db, DUBAI, now=20.0)
        assert list_spokes(db) == []
        assert list_spokes(db, revoked=True)[0].revoked == 20.0


def test_a_version_and_its_deltas(database):
    version = VersionRecord(ONE, INDEX, 1000, FILE, "Digits", ("me", "eu"), ("gdpr",), (), {"onnx-int8": 0.97}, None, 1.0)
    offer = DeltaOffer(base=INDEX, target=FILE, delta=digest_of(b"d"), size=3)
    with database.begin() as db:
        add_version(db, version)
        add_version(db, version)
        add_delta(db, ONE, offer)
        add_delta(db, ONE, offer)
        assert find_version(db, ONE) == version
        assert list_versions(db, "digits") == [version]
        assert list_versions(db, "other") == []
        assert deltas_to(db, ONE) == (offer,)
        assert find_version(db, ModelRef("digits", 2)) is None


def test_assignments_and_directives(database):
    terms = DesiredModel(model="digits", version=1, index=INDEX)
    given = Assignment(DUBAI, ONE, INDEX, "r", 0, terms, 5.0, 1, None)
    sealed = SealedDirective(DUBAI, 1, INDEX, 5.0, 500.0, b"signed")
    with database.begin() as db:
        assign(db, given)
        assert assignments_of(db, DUBAI) == [given] == rollout_assignments(db, "r")
        assert find_assignment(db, DUBAI, "digits") == given
        put_directive(db, sealed)
        assert find_directive(db, DUBAI) == sealed
        assert due_directives(db, before=6.0) == [DUBAI]
        assert due_directives(db, before=5.0) == []
        unassign(db, DUBAI, "digits")
        assert assignments_of(db, DUBAI) == []


def test_reports_are_kept_whole_and_the_newest_counts(database):
    with database.begin() as db:
        add_report(db, report(1, State.STAGING), b"one", now=10.0)
        add_report(db, report(2), b"two", now=11.0)
        assert kept_envelope(db, DUBAI, f"{2:032x}") == b"two"
        assert kept_envelope(db, DUBAI, f"{3:032x}") is None
        assert (received_after(db, DUBAI, 1, since=0), received_after(db, DUBAI, 2, since=0)) == (11.0, None)
        newest = latest_about(db, "digits", INDEX)[DUBAI]
        assert (newest.sequence, newest.state, newest.evidence.labelled, newest.envelope) == (2, State.COMMITTED, 7, b"two")
        assert [r.sequence for r in list_reports(db, DUBAI)] == [2, 1]
        assert list_reports(db, model="other") == []


PLAN = """{apiVersion: spokeshave/v1, kind: Rollout, metadata: {name: r1},
 spec: {model: digits@1, rings: [{name: canary, sites: [dubai]}, {name: rest, sites: ['*']}]}}"""


def test_rollouts_and_rings(database):
    plan = RolloutPlan.parse(PLAN)
    with database.begin() as db:
        add_rollout(db, plan, INDEX, "ann", RolloutState.RUNNING, now=1.0)
        set_ring(db, "r1", 0, state=RingState.RUNNING.value, started=2.0)
        found = find_rollout(db, "r1")
        assert found.plan == plan
        assert [r.state for r in found.rings] == [RingState.RUNNING, RingState.WAITING]
        assert found.rings[0].started == 2.0
        add_approval(db, "r1", "bob", now=1.0)
        add_approval(db, "r1", "bob", now=2.0)
        assert approvers_of(db, "r1") == {"bob"}
        assert open_rollouts(db, "digits") == [found] == list_rollouts(db)
        set_rollout(db, "r1", RolloutState.ABORTED, "golden_mismatch", now=3.0)
        assert open_rollouts(db) == []


def test_the_audit_chain_shows_a_changed_row(database):
    with database.begin() as db:
        for n in range(3):
            append_audit(db, "ann", AuditAction.ROLLOUT_APPLY, f"r{n}", now=n + 0.25, details={"model": "digits@1"})
        assert verify_audit(db) is None
        assert [line.number for line, _ in read_audit(db, after=1)] == [2, 3]
        db.execute(audit.update().where(audit.c.number == 2).values(who="eve"))
        assert verify_audit(db) == 2


def test_writers_come_one_at_a_time_so_the_chain_has_no_gaps(database):
    def write(name):
        for _ in range(10):
            with database.begin() as db:
                append_audit(db, name, AuditAction.SPOKE_INVITE, "y", now=1.0)

    threads = [threading.Thread(target=write, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as db:
        assert verify_audit(db) is None
        assert len(read_audit(db)) == 40


def fail_half_way(database):
    with database.begin() as db:
        set_value(db, "x", "1")
        raise ZeroDivisionError


def test_a_failed_transaction_leaves_nothing(database):
    with pytest.raises(ZeroDivisionError):
        fail_half_way(database)
    with database.read() as db:
        assert get_value(db, "x") is None

import pytest

from hub.rules.access import PERMISSIONS, Permission, Principal, Role, allows, approvals_missing, parse_roles


def test_every_permission_has_its_roles_and_a_viewer_only_reads():
    assert set(PERMISSIONS) == set(Permission)
    viewer = Principal("v", frozenset({Role.VIEWER}))
    assert [p for p in Permission if allows(viewer, p)] == [Permission.READ]
    assert not any(allows(Principal("nobody", frozenset()), p) for p in Permission)


def test_authors_do_not_approve_their_own():
    assert approvals_missing(2, "ann", frozenset({"ann", "bob"})) == 1
    assert approvals_missing(2, "ann", frozenset({"cid", "bob"})) == 0


def test_unknown_roles_are_refused():
    assert parse_roles("viewer, operator") == {Role.VIEWER, Role.OPERATOR}
    for text in ("", "root"):
        with pytest.raises(ValueError):
            parse_roles(text)

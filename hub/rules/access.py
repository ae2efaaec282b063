"""Who may do what: five roles, one table. What is not in the table is forbidden."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["PERMISSIONS", "Permission", "Principal", "Role", "allows", "approvals_missing", "parse_roles"]


class Role(StrEnum):
    """A role of a person or a program. Roles add up; none contains another."""

    VIEWER = "viewer"
    ML_ENGINEER = "ml-engineer"
    OPERATOR = "operator"
    APPROVER = "approver"
    AUDITOR = "auditor"


class Permission(StrEnum):
    """What can be done."""

    READ = "read"
    PUBLISH = "publish"
    PLAN = "plan"
    STEER = "steer"
    APPROVE = "approve"
    ENROL = "enrol"
    EXPORT = "export"
    AUDIT = "audit"
    TOKENS = "tokens"


_EVERYONE = frozenset(Role)
PERMISSIONS: dict[Permission, frozenset[Role]] = {
    Permission.READ: _EVERYONE,
    Permission.PUBLISH: frozenset({Role.ML_ENGINEER, Role.OPERATOR}),
    Permission.PLAN: frozenset({Role.ML_ENGINEER, Role.OPERATOR}),
    Permission.STEER: frozenset({Role.OPERATOR}),
    Permission.APPROVE: frozenset({Role.APPROVER}),
    Permission.ENROL: frozenset({Role.OPERATOR}),
    Permission.EXPORT: frozenset({Role.OPERATOR}),
    Permission.AUDIT: frozenset({Role.AUDITOR, Role.OPERATOR}),
    Permission.TOKENS: frozenset({Role.OPERATOR}),
}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is calling."""

    name: str
    roles: frozenset[Role]


def allows(principal: Principal, permission: Permission) -> bool:
    """Whether one of the roles carries the permission."""
    return bool(PERMISSIONS.get(permission, frozenset()) & principal.roles)


def parse_roles(text: str) -> frozenset[Role]:
    """Read `viewer,operator`. Raises ValueError on an unknown role or none."""
    roles = frozenset(Role(part.strip()) for part in text.split(",") if part.strip())
    if not roles:
        raise ValueError("at least one role is needed")
    return roles


def approvals_missing(needed: int, author: str, approvers: frozenset[str]) -> int:
    """How many approvals are still to come; the author's own does not count."""
    return max(0, needed - len(approvers - {author}))

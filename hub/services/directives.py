"""Makes the directive of each spoke: from its assignments, numbered, signed with the director's key.

Level-triggered: a directive holds the whole desired state. Its generation grows when the content changes, and when the same
content is signed anew before it expires: two documents under one generation would look like a replay.
"""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from sqlalchemy import Connection

from hub.store.directives import Assignment, SealedDirective, assignments_of, find_directive, put_directive
from hub.store.spokes import Spoke, find_spoke
from hub.store.versions import deltas_to
from model_formats.core.errors import OperatorError
from sync.core.types import SpokeId
from sync.protocol.messages import DesiredModel, Directive, EgressCeiling
from sync.trust.dsse import seal
from sync.trust.keys import Signer

__all__ = ["SpokeUnknown", "compose", "content_of", "next_generation", "refresh_directive"]

_EPOCH = datetime.fromtimestamp(0, UTC)


class SpokeUnknown(OperatorError):
    """No such spoke is enrolled here."""

    code = "spoke_unknown"
    http = 404
    hint = "`hub spoke list` shows all; `hub spoke invite` makes a code for a new one."


def compose(
    spoke: Spoke,
    models: Iterable[DesiredModel],
    generation: int,
    issued: datetime,
    life: timedelta,
    ceiling: EgressCeiling | None = None,
) -> Directive:
    """The directive of one spoke."""
    return Directive(
        site=spoke.id.site,
        spoke=spoke.id.spoke,
        zone=spoke.zone,
        generation=generation,
        issued=issued,
        expires=issued + life,
        # Sorted, so that equal content has equal bytes and needs no new generation.
        models=tuple(sorted(models, key=lambda m: m.model)),
        egress=ceiling or EgressCeiling(),
    )


def content_of(directive: Directive) -> str:
    """Digest of what it says, without its number and times."""
    return directive.replace(generation=1, issued=_EPOCH, expires=_EPOCH).digest


def next_generation(db: Connection, spoke: SpokeId) -> int:
    """The number that the next change will have."""
    held = find_directive(db, spoke)
    return held.generation + 1 if held else 1


def refresh_directive(
    db: Connection, director: Signer, spoke: SpokeId, *, now: float, life_s: float, ceiling: EgressCeiling | None = None
) -> SealedDirective:
    """Bring one spoke's directive up to date; returns the newest, changed or not. Raises SpokeUnknown.

    It is sealed anew when its content has changed or half of its life is over.
    """
    row = find_spoke(db, spoke)
    if row is None or row.revoked is not None:
        raise SpokeUnknown(f"{spoke} is not enrolled")
    held = find_directive(db, spoke)
    models = [_desired(db, a) for a in assignments_of(db, spoke)]
    issued = datetime.fromtimestamp(int(now), UTC)
    directive = compose(row, models, next_generation(db, spoke), issued, timedelta(seconds=int(life_s)), ceiling)
    content = content_of(directive)
    # Not signed anew for nothing: each new generation is a message to the spoke and a write to its journal.
    if held and held.content == content and held.expires - now > life_s / 2:
        return held
    sealed = SealedDirective(
        spoke,
        directive.generation,
        content,
        directive.issued.timestamp(),
        directive.expires.timestamp(),
        seal(directive, director),
    )
    put_directive(db, sealed)
    return sealed


def _desired(db: Connection, assignment: Assignment) -> DesiredModel:
    return assignment.terms.replace(deltas=deltas_to(db, assignment.ref))
